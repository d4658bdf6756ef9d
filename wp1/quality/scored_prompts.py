"""Prompts from the examples of tasks whose answers are scored: the same in every arm and repeat."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from wp1.core.plan import Cell
from wp1.core.records import Request
from wp1.quality import examples, sources
from wp1.workload.prompts import WARMUP_TOKENS, PromptData, PromptSource, Requests, request_of
from wp1.workload.seeds import derive_seed
from wp1.workload.tokens import ModelTokens


class ScoredPrompts(PromptSource):
    """Examples of all tasks, in a shuffled order that is the same in every arm and repeat."""

    repeated = True

    def read(self, cfg: Any, tell: Callable[[str], None]) -> sources.Drawn | None:
        return examples.read(cfg, tell)

    def prepare(
        self,
        cfg: Any,
        data: PromptData,
        tokens: ModelTokens | None,
        cells: Sequence[Cell],
        tell: Callable[[str], None],
        given: sources.Drawn | None,
    ) -> PromptData:
        return replace(data, examples=examples.examples(cfg, list(cells), tokens, tell, given))

    def requests(self, cfg: Any, cell: Cell, repeat: int, data: PromptData) -> Requests:
        chosen = data.examples.cells[cell.name]
        order = sorted(range(len(chosen)), key=lambda n: derive_seed(cfg.seed, "order", chosen[n].name, n))

        def make(n: int) -> Request:
            example = chosen[order[n]]
            seed = derive_seed(cfg.seed, cell.name, example.name, "sampling")
            request = request_of(cfg, cell, repeat, example.name, [], example.label, seed, example.task.max_tokens)
            request.example, request.stop = example.name, list(example.task.stop)
            request.nll_window = example.task.nll_window
            return request

        return Requests(len(chosen), make, lambda n: chosen[order[n]].prompt.tolist())

    def warmup_length(self, cell: Cell, data: PromptData) -> int | None:
        # So that prompt and warm-up answer together are no longer than the longest measured prompt.
        return max(1, max(len(example.prompt) for example in data.examples.cells[cell.name]) - WARMUP_TOKENS)
