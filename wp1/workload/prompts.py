"""Requests from the configuration: the same seed gives the same prompts on any machine.

They are made one by one, as they are taken: a thousand prompts of 100,000 tokens would be gigabytes as lists.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np

from wp1.core.plan import Cell
from wp1.core.records import Request
from wp1.workload import lengths, texts, trace
from wp1.workload.arrivals import Schedule, schedule
from wp1.workload.dataset import Question
from wp1.workload.limits import longest
from wp1.workload.seeds import derive_seed

# Warm-up prompts are of their own kind, so that nothing they leave behind can serve a measured one.
WARMUP_QUESTION = "Count from one to ten in words."
WARMUP_TOKENS = 8
# Of these prompts (workload.prompts) every repeat of a cell asks the same.
REPEATED = ("dataset", "scored", "judged")  # judged: the name of scored in folders of earlier runs

Encode = Callable[[str], list[int]]


def as_token_ids(text: str) -> list[int]:
    """The UTF-8 bytes of a text as token ids.

    For random weights, which have no tokenizer: the ids mean nothing to the model, but prompts keep distinct contents
    and lengths that grow with the text.
    """
    return list(text.encode())


def random_token_ids(length: int, vocab_size: int, seed: int) -> list[int]:
    """`length` ids, uniform over the vocabulary less its first 1,000, where models keep their special tokens."""
    low = min(1000, vocab_size // 2)
    return np.random.default_rng(seed).integers(low, vocab_size, length).tolist()


@dataclass(frozen=True)
class PromptData:
    """What prompts are made of. Everything that takes a tokenizer is done when it is made, not while requests run.

    vocab_size: ids that random prompts are drawn from.
    encode: from a question to the model's token ids, its chat template included.
    questions: the dataset's rows with their token ids (workload.prompts=dataset).
    text: token ids of a long text (workload.prompts=text).
    rows: the recorded requests (workload.prompts=trace).
    examples: those of each cell, a `wp1.quality.examples.Examples` (workload.prompts=scored).
    """

    vocab_size: int
    encode: Encode
    questions: list[tuple[Question, np.ndarray]] = field(default_factory=list)
    text: np.ndarray | None = None
    rows: list[trace.Row] = field(default_factory=list)
    examples: Any = None


class Requests(Sequence[Request]):
    """Lazy sequence of requests; each access builds a new one.

    make: a request by its place, without its prompt; prompt: its token ids, which take most of the time and memory.
    """

    def __init__(self, count: int, make: Callable[[int], Request], prompt: Callable[[int], list[int]]) -> None:
        self._count, self._bare, self._prompt = count, make, prompt

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
        """The requests from that place on, their prompts empty: for those that are not sent."""
        return map(self._bare, range(first, self._count))


def measured(cfg: Any, cell: Cell, repeat: int, data: PromptData) -> Requests:
    """The requests of one repeat of a cell, in the order they are sent; every prompt is token ids.

    A dataset's question has the same seed in every repeat, so that repeats can be compared token by token; all other
    prompts differ in every repeat, so that no cache can answer them, but for what `workload.shared_prefix` or a
    trace's equal hash ids let them share within one repeat.
    Raises ConfigError where a text is too short for its prompts.
    """
    workload = cfg.workload
    if workload.prompts == "dataset":
        return _questions(cfg, cell, repeat, data)
    if workload.prompts == "scored":
        return _scored(cfg, cell, repeat, data)
    if workload.prompts == "trace":
        return _replayed(cfg, cell, repeat, data)
    count = cell.num_requests or 0
    length = cell.prompt_len or 0
    shared = min(round(workload.shared_prefix * length), length - 1)
    prefix = _prefix(cfg, cell, repeat, data, shared)
    sizes = lengths.outputs(workload, count, derive_seed(cfg.seed, cell.name, repeat, "output lengths"))
    kind = "random tokens" if workload.prompts == "random" else "tokens of text"

    def make(n: int) -> Request:
        seed = derive_seed(cfg.seed, cell.name, repeat, n, "sampling")
        return request_of(cfg, cell, repeat, f"{n}", [], f"{length} {kind}", seed, sizes[n])

    def prompt(n: int) -> list[int]:
        return prefix + _own_tokens(cfg, cell, repeat, n, data, length - shared)

    return Requests(count, make, prompt)


def _own_tokens(cfg: Any, cell: Cell, repeat: int, n: int, data: PromptData, length: int) -> list[int]:
    """What no other prompt of the cell has: `n` counts the prompts of a repeat, those for warming up from -1 down."""
    if cfg.workload.prompts == "random":
        return random_token_ids(length, data.vocab_size, derive_seed(cfg.seed, cell.name, repeat, n))
    assert data.text is not None
    index = repeat * (cell.num_requests or 0) + n if n >= 0 else n
    start = texts.start_of(index, length, len(data.text), derive_seed(cfg.seed, cell.name))
    return data.text[start : start + length].tolist()


def _prefix(cfg: Any, cell: Cell, repeat: int, data: PromptData, length: int) -> list[int]:
    """What all prompts of a repeat begin with, of the kind of the rest."""
    if length <= 0:
        return []
    seed = derive_seed(cfg.seed, cell.name, repeat, "prefix")
    if cfg.workload.prompts == "random":
        return random_token_ids(length, data.vocab_size, seed)
    assert data.text is not None
    start = texts.start_of(0, length, len(data.text), seed)
    return data.text[start : start + length].tolist()


def _questions(cfg: Any, cell: Cell, repeat: int, data: PromptData) -> Requests:
    rows, count = data.questions, cell.num_requests or len(data.questions)
    sizes = lengths.outputs(cfg.workload, count, derive_seed(cfg.seed, cell.name, "output lengths"))
    # A row's own length, up to workload.output_len; a distribution that is asked for goes before it.
    by_row = cfg.workload.output_distribution == "fixed"

    def make(n: int) -> Request:
        question, _ = rows[n % len(rows)]
        seed = derive_seed(cfg.seed, cell.name, n, "sampling")
        size = sizes[n]
        if by_row and question.output_len is not None:
            size = min(question.output_len, size)
        return request_of(cfg, cell, repeat, f"{n}-{question.id}", [], question.question, seed, size)

    return Requests(count, make, lambda n: rows[n % len(rows)][1].tolist())


def _scored(cfg: Any, cell: Cell, repeat: int, data: PromptData) -> Requests:
    """The tasks mixed, by a shuffle that is the same in every arm and repeat."""
    asked = data.examples.cells[cell.name]
    order = sorted(range(len(asked)), key=lambda n: derive_seed(cfg.seed, "order", asked[n].name, n))

    def make(n: int) -> Request:
        example = asked[order[n]]
        seed = derive_seed(cfg.seed, cell.name, example.name, "sampling")
        request = request_of(cfg, cell, repeat, example.name, [], example.label, seed, example.task.max_tokens)
        request.example, request.stop = example.name, list(example.task.stop)
        request.nll_window = example.task.nll_window
        return request

    return Requests(len(asked), make, lambda n: asked[order[n]].prompt.tolist())


def _replayed(cfg: Any, cell: Cell, repeat: int, data: PromptData) -> Requests:
    # Blocks differ between repeats, or the second would find all of the first's in a prefix cache.
    of_repeat = derive_seed(cfg.seed, cell.name, repeat, "blocks")

    def make(n: int) -> Request:
        row = data.rows[n]
        seed = derive_seed(cfg.seed, cell.name, repeat, n, "sampling")
        return request_of(cfg, cell, repeat, f"{n}", [], f"line {row.line} of the trace", seed, row.output_len)

    def prompt(n: int) -> list[int]:
        scale = cfg.workload.trace_length_scale
        return trace.token_ids(data.rows[n], n, data.vocab_size, of_repeat, scale).tolist()

    return Requests(len(data.rows), make, prompt)


def arrivals(cfg: Any, cell: Cell, repeat: int, data: PromptData) -> Schedule | None:
    """When the requests of one repeat of a cell are due; None in a closed loop, where that is up to the answers."""
    if cfg.workload.prompts == "trace":
        return Schedule(trace.offsets(data.rows, cfg.workload.trace_speed))
    if cell.request_rate <= 0:
        return None
    count = cell.num_requests or len(data.questions or data.examples.cells[cell.name])
    return schedule(cfg.workload, count, cell.request_rate, derive_seed(cfg.seed, cell.name, repeat, "arrivals"))


def warmup_round(cfg: Any, cell: Cell, repeat: int, data: PromptData, engines: int, number: int) -> list[Request]:
    """One request for each engine that is not measured: prompts of their own, as long as the cell's.

    repeat: the first that follows. number: of the round, from 0; no two rounds have a prompt in common.
    """
    length = cell.prompt_len
    if cfg.workload.prompts == "trace":
        length = int(np.median([row.prompt_len for row in data.rows]))
    if cfg.workload.prompts == "scored":
        # With the warm-up's own answer no longer than what is measured.
        length = max(1, max(len(example.prompt) for example in data.examples.cells[cell.name]) - WARMUP_TOKENS)
    requests = []
    for n in range(number * engines, (number + 1) * engines):
        if length is None:
            prompt = data.encode(f"{WARMUP_QUESTION} ({n})")
        elif cfg.workload.prompts == "text":
            prompt = _own_tokens(cfg, cell, repeat, -1 - n, data, length)
        else:
            prompt = random_token_ids(length, data.vocab_size, derive_seed(cfg.seed, cell.name, "warm-up", repeat, n))
        seed = derive_seed(cfg.seed, cell.name, "warm-up", n)
        most = min(longest(cfg.workload), WARMUP_TOKENS)
        request = request_of(cfg, cell, repeat, f"warm-up-{n}", prompt, "warm-up", seed, most)
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
    """A request with the workload's sampling. max_tokens: None is `workload.output_len`."""
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
