"""Builds requests from the configuration: the same seed gives the same prompts on any machine.

Requests are built one at a time, on access: a thousand prompts of 100,000 tokens would take gigabytes as lists.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from wp1.core.errors import ConfigError
from wp1.core.outside import named
from wp1.core.plan import Cell
from wp1.core.records import Request
from wp1.workload import declared_keys
from wp1.workload.arrivals import Schedule, schedule
from wp1.workload.limits import longest
from wp1.workload.seeds import derive_seed

if TYPE_CHECKING:
    import numpy as np

    from wp1.workload import trace
    from wp1.workload.dataset import Question
    from wp1.workload.tokens import ModelTokens

# Warm-up prompts differ from measured ones, so that no cached prefix of theirs can serve a measured request.
WARMUP_QUESTION = "Count from one to ten in words."
WARMUP_TOKENS = 8
# Short names for `workload.prompts`; any other source of prompts is named as package.module.Class.
OWN = {
    "dataset": "wp1.workload.question_prompts.QuestionPrompts",
    "random": "wp1.workload.made_prompts.RandomPrompts",
    "scored": "wp1.quality.scored_prompts.ScoredPrompts",
    "text": "wp1.workload.made_prompts.TextPrompts",
    "trace": "wp1.workload.trace_prompts.TracePrompts",
}
# Names used in the folders of earlier runs.
EARLIER = {"judged": "scored"}

Encode = Callable[[str], list[int]]


def as_token_ids(text: str) -> list[int]:
    """The UTF-8 bytes of a text as token ids.

    For random weights, which have no tokenizer: the ids mean nothing to the model, but prompts still differ in content,
    and their length grows with the text.
    """
    return list(text.encode())


def random_token_ids(length: int, vocab_size: int, seed: int) -> list[int]:
    """`length` ids, uniform over the vocabulary without its first 1,000, where many models keep special tokens."""
    import numpy as np

    low = min(1000, vocab_size // 2)
    return np.random.default_rng(seed).integers(low, vocab_size, length).tolist()


@dataclass(frozen=True)
class PromptData:
    """The data that prompts are built from. All tokenization happens when it is built, not while requests run.

    vocab_size: number of ids that random prompts are drawn from.
    encode: turns a question into the model's token ids, including the chat template.
    questions: the dataset's rows with their token ids (workload.prompts=dataset).
    text: token ids of a long text (workload.prompts=text).
    rows: the recorded requests (workload.prompts=trace).
    examples: the examples of each cell, a `wp1.quality.examples.Examples` (workload.prompts=scored).
    own: anything that a source from outside wp1 keeps.
    """

    vocab_size: int
    encode: Encode
    questions: "list[tuple[Question, np.ndarray]]" = field(default_factory=list)
    text: "np.ndarray | None" = None
    rows: "list[trace.Row]" = field(default_factory=list)
    examples: Any = None
    own: Any = None


class Requests(Sequence[Request]):
    """Lazy sequence of requests; each access builds a new one.

    count: None, as of workload.num_requests=null, means no requests.
    make: builds the request at an index, without its prompt. prompt: its token ids, which take most of the time and
    memory.
    """

    def __init__(self, count: int | None, make: Callable[[int], Request], prompt: Callable[[int], list[int]]) -> None:
        self._count, self._bare, self._prompt = count or 0, make, prompt

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Request: ...

    @overload
    def __getitem__(self, index: slice) -> list[Request]: ...

    def __getitem__(self, index: int | slice) -> Request | list[Request]:
        if isinstance(index, slice):
            return [self._make(n) for n in range(*index.indices(self._count))]
        return self._make(range(self._count)[index])

    def __iter__(self) -> Iterator[Request]:
        return map(self._make, range(self._count))

    def _make(self, n: int) -> Request:
        request = self._bare(n)
        request.prompt = self._prompt(n)
        return request

    def without_prompts(self, first: int) -> Iterator[Request]:
        """The requests from index `first` on, with empty prompts: for those that are never sent."""
        return map(self._bare, range(first, self._count))


class PromptSource:
    """A source of a run's prompts, as named by `workload.prompts`: one class per source, which keeps
    nothing between calls.

    The parameters of its `__init__`, if it has one, are keys of `workload` (`wp1.workload.declared_keys`).

    Methods are called in this order: `check`, before anything is read; `read`, before the model is fetched; `prepare`,
    with the tokenizer; then the others, for every cell and repeat. Only `requests` has to be implemented.
    """

    made_to_length = False  # whether prompts have the lengths of workload.prompt_len or experiment.prompt_lens
    repeated = False  # whether all repeats of a cell have the same prompts, so that answers can be compared by token
    asks_questions = False  # whether prompts are the dataset's questions, so that reports show each with its answer
    recorded = False  # whether requests have their own times and lengths
    # Keys of `workload` that only this source reads, with their defaults.
    keys: Mapping[str, Any] = {}

    def check(self, cfg: Any) -> None:
        """Raises ConfigError, naming the key, for settings that contradict each other."""

    def read(self, cfg: Any, tell: Callable[[str], None]) -> Any:
        """Reads the source's data, before the model is loaded. Raises ConfigError if it cannot be read or used."""
        return None

    def files(self, cfg: Any) -> dict[str, Path]:
        """The files whose contents determine the requests, for the configuration hash."""
        return {}

    def prepare(
        self,
        cfg: Any,
        data: PromptData,
        tokens: "ModelTokens | None",
        cells: Sequence[Cell],
        tell: Callable[[str], None],
        given: Any,
    ) -> PromptData:
        """Prepares the data that the requests of these cells, all of one arm, are built from.

        data: the model's vocabulary and encoding only. tokens: None for random weights. given: what `read` returned.
        Raises ConfigError if the data is unsuitable.
        """
        return data

    def lengths(self, data: PromptData) -> dict[str, int]:
        """Tokens of each prompt whose length comes from the data, by name: the model must have room for each."""
        return {}

    def inputs(self, cfg: Any, given: Any, data: PromptData) -> tuple[dict[str, Any], list[str]]:
        """A description of the data for run_metadata.json, and the same as lines of text for the console."""
        return {}, []

    def requests(self, cfg: Any, cell: Cell, repeat: int, data: PromptData) -> Requests:
        """The requests of one repeat of a cell, in sending order, with prompts as token ids."""
        raise NotImplementedError

    def arrivals(self, cfg: Any, cell: Cell, repeat: int, data: PromptData) -> Schedule | None:
        """When the requests are due; None in a closed loop, where each answer triggers the next request."""
        if cell.request_rate <= 0:
            return None
        count = cell.num_requests or len(self.requests(cfg, cell, repeat, data))
        return schedule(cfg.workload, count, cell.request_rate, derive_seed(cfg.seed, cell.name, repeat, "arrivals"))

    def warmup_length(self, cell: Cell, data: PromptData) -> int | None:
        """Tokens of a warm-up prompt; None for a short question."""
        return cell.prompt_len

    def warmup_prompt(self, cfg: Any, cell: Cell, repeat: int, n: int, data: PromptData) -> list[int]:
        """Warm-up prompt `n`: as long as the measured ones, but different from all of them."""
        length = self.warmup_length(cell, data)
        if length is None:
            return data.encode(f"{WARMUP_QUESTION} ({n})")
        return random_token_ids(length, data.vocab_size, derive_seed(cfg.seed, cell.name, "warm-up", repeat, n))


def own_source(name: str) -> PromptSource | None:
    """wp1's own source of that name, as found in a run's folder; None for any other, which is not imported."""
    name = EARLIER.get(name, name)
    return class_of(name)() if name in OWN else None


def asks_questions(config: Mapping[str, Any]) -> bool:
    """Whether a run's prompts are the dataset's questions; never for a source from outside wp1, not imported here."""
    source = own_source(config["workload"]["prompts"])
    return source is not None and source.asks_questions


def source_of(workload: Any) -> PromptSource:
    """The source that `workload.prompts` names in a resolved configuration, made of its own settings.

    Raises ConfigError if the name is unknown, or if the source refuses its settings by a ValueError.
    """
    source = class_of(workload.prompts)
    try:
        return source(**declared_keys.values(source, workload))
    except ValueError as error:
        raise ConfigError(
            f"workload.prompts={workload.prompts} cannot be made ({' '.join(str(error).split())}): change its settings"
        ) from error


def class_of(name: str) -> type[PromptSource]:
    """The class that `workload.prompts` names. Raises ConfigError if the name is unknown or cannot be imported."""
    if (target := OWN.get(name)) is not None:
        module, _, attribute = target.rpartition(".")
        return getattr(importlib.import_module(module), attribute)
    setting = f"workload.prompts={name}"
    choices = f"set workload.prompts to {' or '.join(OWN)}, or to a package.module.Class of your own"
    source = named(setting, name, f"is not known: {choices}")
    if not isinstance(source, type) or not issubclass(source, PromptSource):
        raise ConfigError(f"{setting} is not a class derived from wp1.workload.prompts.PromptSource: name one that is")
    return source


def measured(cfg: Any, cell: Cell, repeat: int, data: PromptData) -> Requests:
    """The requests of one repeat of a cell, in sending order, with prompts as token ids.

    A dataset's question has the same seed in every repeat, so that repeats can be compared token by token. All other
    prompts differ between repeats, so that a prefix cache does not help, except for the prefixes that
    `workload.shared_prefix` or a trace's equal hash ids let them share within one repeat.
    Raises ConfigError if a text is too short for its prompts.
    """
    return source_of(cfg.workload).requests(cfg, cell, repeat, data)


def arrivals(cfg: Any, cell: Cell, repeat: int, data: PromptData) -> Schedule | None:
    """When the requests of one repeat of a cell are due; None in a closed loop (`PromptSource.arrivals`)."""
    return source_of(cfg.workload).arrivals(cfg, cell, repeat, data)


def warmup_round(cfg: Any, cell: Cell, repeat: int, data: PromptData, engines: int, number: int) -> list[Request]:
    """One warm-up request for each engine, not measured: prompts as long as the cell's, but different.

    repeat: the repeat that follows. number: the round's, from 0; no prompt occurs in two rounds.
    """
    source = source_of(cfg.workload)
    requests = []
    for n in range(number * engines, (number + 1) * engines):
        prompt = source.warmup_prompt(cfg, cell, repeat, n, data)
        seed = derive_seed(cfg.seed, cell.name, "warm-up", n)
        max_tokens = min(longest(cfg.workload), WARMUP_TOKENS)
        request = request_of(cfg, cell, repeat, f"warm-up-{n}", prompt, "warm-up", seed, max_tokens)
        request.warmup = True
        requests.append(request)
    return requests


def request_of(
    cfg: Any,
    cell: Cell,
    repeat: int,
    name: str,
    prompt: list[int],
    label: str,
    seed: int,
    max_tokens: int | None = None,
) -> Request:
    """A request with the workload's sampling settings. max_tokens: None means `workload.output_len`."""
    workload = cfg.workload
    return Request(
        request_id=f"{cell.arm}/{cell.name}/r{repeat}/{name}",
        arm=cell.arm,
        cell=cell.name,
        repeat=repeat,
        prompt=prompt,
        max_tokens=workload.output_len if max_tokens is None else max_tokens,
        seed=seed,
        label=label,
        temperature=workload.temperature,
        top_p=workload.top_p,
        ignore_eos=workload.ignore_eos,
        timeout_s=workload.timeout_s,
    )
