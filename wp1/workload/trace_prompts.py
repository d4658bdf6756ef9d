"""Replays recorded traffic at its original times and lengths."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from wp1.core.errors import ConfigError
from wp1.core.plan import Cell
from wp1.core.records import Request
from wp1.workload import trace
from wp1.workload.arrivals import Schedule
from wp1.workload.prompts import PromptData, PromptSource, Requests, request_of
from wp1.workload.seeds import derive_seed
from wp1.workload.tokens import ModelTokens


class TracePrompts(PromptSource):
    """A trace's requests, with different token ids in every repeat."""

    recorded = True
    keys: Mapping[str, Any] = MappingProxyType(
        {"trace_path": None, "trace_format": "auto", "trace_speed": 1.0, "trace_length_scale": 1.0}
    )

    def check(self, cfg: Any) -> None:
        workload = cfg.workload
        if workload.trace_path is None:
            raise ConfigError(
                "workload.trace_path is empty: set workload.trace_path=FILE (see conf/workload/trace.yaml)"
            )
        if not Path(workload.trace_path).expanduser().is_file():
            raise ConfigError(f"workload.trace_path={workload.trace_path} is not a file: name a trace in JSON or CSV")
        if workload.request_rate or cfg.experiment.request_rates is not None:
            key = "workload.request_rate" if workload.request_rate else "experiment.request_rates"
            raise ConfigError(f"{key} has no effect on a trace, which has its own times: set workload.trace_speed")
        if workload.output_distribution != "fixed":
            raise ConfigError(
                "workload.output_distribution has no effect on a trace, which has its own lengths: drop it"
            )

    def read(self, cfg: Any, tell: Callable[[str], None]) -> trace.Trace:
        tell("reading the trace")
        recorded = trace.read(cfg.workload)
        trace.check_lengths(recorded, cfg.model.max_len)
        return recorded

    def files(self, cfg: Any) -> dict[str, Path]:
        return {"trace": Path(cfg.workload.trace_path).expanduser()}

    def prepare(
        self,
        cfg: Any,
        data: PromptData,
        tokens: ModelTokens | None,
        cells: Sequence[Cell],
        tell: Callable[[str], None],
        given: trace.Trace,
    ) -> PromptData:
        return replace(data, rows=trace.tokenized(given, cfg.model.max_len, data.encode).rows)

    def inputs(self, cfg: Any, given: trace.Trace, data: PromptData) -> tuple[dict[str, Any], list[str]]:
        return {"trace": given.summary()}, [given.words()]

    def requests(self, cfg: Any, cell: Cell, repeat: int, data: PromptData) -> Requests:
        # Blocks differ between repeats, or the prefix cache would still hold all of the first repeat's.
        block_seed = derive_seed(cfg.seed, cell.name, repeat, "blocks")

        def make(n: int) -> Request:
            row = data.rows[n]
            seed = derive_seed(cfg.seed, cell.name, repeat, n, "sampling")
            return request_of(cfg, cell, repeat, f"{n}", [], f"line {row.line} of the trace", seed, row.output_len)

        def prompt(n: int) -> list[int]:
            scale = cfg.workload.trace_length_scale
            return trace.token_ids(data.rows[n], n, data.vocab_size, block_seed, scale).tolist()

        return Requests(len(data.rows), make, prompt)

    def arrivals(self, cfg: Any, cell: Cell, repeat: int, data: PromptData) -> Schedule | None:
        return Schedule(trace.offsets(data.rows, cfg.workload.trace_speed))

    def warmup_length(self, cell: Cell, data: PromptData) -> int | None:
        import numpy as np

        return int(np.median([row.prompt_len for row in data.rows]))
