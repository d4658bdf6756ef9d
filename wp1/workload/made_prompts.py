"""Prompts made to a given length, from random tokens or from passages of a text."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from wp1.core.errors import ConfigError
from wp1.core.plan import Cell
from wp1.core.records import Request
from wp1.workload import lengths, texts
from wp1.workload.prompts import PromptData, PromptSource, Requests, as_token_ids, random_token_ids, request_of
from wp1.workload.seeds import derive_seed
from wp1.workload.tokens import ModelTokens


class RandomPrompts(PromptSource):
    """Random token ids. No two prompts are alike, except for the `workload.shared_prefix` of a repeat."""

    made_to_length = True
    of = "random tokens"

    def requests(self, cfg: Any, cell: Cell, repeat: int, data: PromptData) -> Requests:
        workload = cfg.workload
        count = cell.num_requests or 0
        length = cell.prompt_len or 0
        shared = min(round(workload.shared_prefix * length), length - 1)
        prefix = self._prefix(cfg, cell, repeat, data, shared) if shared > 0 else []
        sizes = lengths.outputs(workload, count, derive_seed(cfg.seed, cell.name, repeat, "output lengths"))

        def make(n: int) -> Request:
            seed = derive_seed(cfg.seed, cell.name, repeat, n, "sampling")
            return request_of(cfg, cell, repeat, f"{n}", [], f"{length} {self.of}", seed, sizes[n])

        def prompt(n: int) -> list[int]:
            return prefix + self._own_tokens(cfg, cell, repeat, n, data, length - shared)

        return Requests(count, make, prompt)

    def _own_tokens(self, cfg: Any, cell: Cell, repeat: int, n: int, data: PromptData, length: int) -> list[int]:
        """The part of a prompt that no other prompt of the cell has.

        n: the prompt's index in its repeat; for warm-up prompts -1, -2 and so on.
        """
        return random_token_ids(length, data.vocab_size, derive_seed(cfg.seed, cell.name, repeat, n))

    def _prefix(self, cfg: Any, cell: Cell, repeat: int, data: PromptData, length: int) -> list[int]:
        """The prefix that all prompts of a repeat share."""
        return random_token_ids(length, data.vocab_size, derive_seed(cfg.seed, cell.name, repeat, "prefix"))


class TextPrompts(RandomPrompts):
    """Passages of one text; no two prompts start at the same token."""

    of = "tokens of text"
    keys: Mapping[str, Any] = MappingProxyType({"text_path": None})

    def check(self, cfg: Any) -> None:
        path = cfg.workload.text_path
        if path is not None and not Path(path).expanduser().is_file():
            raise ConfigError(f"workload.text_path={path} is not a file: name a text in UTF-8")

    def read(self, cfg: Any, tell: Callable[[str], None]) -> str:
        return texts.read(cfg.workload.text_path)

    def files(self, cfg: Any) -> dict[str, Path]:
        return {"text": texts.path_of(cfg.workload.text_path)}

    def prepare(
        self,
        cfg: Any,
        data: PromptData,
        tokens: ModelTokens | None,
        cells: Sequence[Cell],
        tell: Callable[[str], None],
        given: str,
    ) -> PromptData:
        text = texts.tokens(given, tokens.ids if tokens else as_token_ids)
        _check_text(cells, len(text))
        return replace(data, text=text)

    def _own_tokens(self, cfg: Any, cell: Cell, repeat: int, n: int, data: PromptData, length: int) -> list[int]:
        index = repeat * (cell.num_requests or 0) + n if n >= 0 else n
        return _passage(data, index, length, derive_seed(cfg.seed, cell.name))

    def _prefix(self, cfg: Any, cell: Cell, repeat: int, data: PromptData, length: int) -> list[int]:
        return _passage(data, 0, length, derive_seed(cfg.seed, cell.name, repeat, "prefix"))

    def warmup_prompt(self, cfg: Any, cell: Cell, repeat: int, n: int, data: PromptData) -> list[int]:
        return self._own_tokens(cfg, cell, repeat, -1 - n, data, cell.prompt_len or 0)


def _passage(data: PromptData, index: int, length: int, seed: int) -> list[int]:
    assert data.text is not None
    start = texts.start_of(index, length, len(data.text), seed)
    return data.text[start : start + length].tolist()


def _check_text(cells: Sequence[Cell], text_tokens: int) -> None:
    """Raises ConfigError if a text has fewer tokens than a prompt, or fewer starting points than there are prompts."""
    length = max(cell.prompt_len or 0 for cell in cells)
    wanted = max(cell.repeats * (cell.num_requests or 0) for cell in cells)
    if text_tokens - length < wanted:
        raise ConfigError(
            f"the text has {text_tokens:,} tokens, too few for {wanted:,} different prompts of {length:,} tokens: set "
            "workload.text_path to a longer text, or shorten the prompts"
        )
