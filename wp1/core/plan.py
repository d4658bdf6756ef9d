"""Plans a run from its configuration: the arms, their cells, and the order of measurement. Pure."""

import math
import re
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Cell:
    """One prompt length at one load, with its repeats, under one arm."""

    arm: str
    name: str
    prompt_len: int | None  # tokens; None for a dataset's or a trace's prompts
    concurrency: int  # closed loop; ignored if request_rate > 0
    request_rate: float  # requests/s
    repeats: int
    num_requests: int | None = None  # per repeat; None: the whole dataset


@dataclass(frozen=True)
class Arm:
    """One scheduler configuration and its cells. All arms of a run have the same cells, apart from `Cell.arm`."""

    name: str
    scheduler: Any  # a node of the configuration
    cells: list[Cell]


@dataclass(frozen=True)
class Block:
    """Repeats of all cells of an arm, measured with one start of its engines."""

    arm: Arm
    repeats: list[int]


def plan(cfg: Any) -> list[Arm]:
    """The arms of a run: those in `arms`, else one with the scheduler that `scheduler=` names."""
    schedulers = dict(cfg.arms) if cfg.arms else {cfg.scheduler.name: cfg.scheduler}
    return [Arm(name, scheduler, _cells(cfg, name)) for name, scheduler in schedulers.items()]


def _cells(cfg: Any, arm: str) -> list[Cell]:
    """Every prompt length at every load, short prompts and low loads first.

    Loads are request rates if there are any, else concurrencies.
    """
    experiment, workload = cfg.experiment, cfg.workload
    if workload.prompts == "trace":
        # Lengths and arrivals come from the trace.
        name = f"{trace_name(workload.trace_path)}-speed{workload.trace_speed:g}"
        return [Cell(arm, name, None, workload.concurrency, 0.0, experiment.repeats, workload.num_requests)]
    lengths = prompt_lens(cfg)
    if open_loop(cfg):
        rates = experiment.request_rates if experiment.request_rates is not None else [workload.request_rate]
        return [cell_of(cfg, arm, length, rate, workload.concurrency) for length in lengths for rate in rates]
    together = experiment.concurrencies or [workload.concurrency]
    return [cell_of(cfg, arm, length, 0.0, concurrency) for length in lengths for concurrency in together]


def open_loop(cfg: Any) -> bool:
    """Whether requests arrive at a rate. If so, `experiment.concurrencies`, the load of closed loops, is not used."""
    return cfg.experiment.request_rates is not None or cfg.workload.request_rate > 0


def cell_of(cfg: Any, arm: str, length: int | None, rate: float, concurrency: int) -> Cell:
    """The cell of one prompt length (tokens) at one load: a rate in requests/s, or `concurrency` if the rate is 0."""
    experiment, workload = cfg.experiment, cfg.workload
    count = workload.num_requests
    if count is not None and rate > 0 and experiment.arrivals_s is not None:
        count = max(count, math.ceil(rate * experiment.arrivals_s))
    if count is not None and rate == 0 and experiment.concurrencies is not None:
        # Fewer requests than the concurrency would not produce that load.
        count = max(count, concurrency)
    return Cell(
        arm=arm,
        name=f"{_prompts(cfg, length)}-{f'rate{rate:g}' if rate > 0 else f'conc{concurrency}'}",
        prompt_len=length,
        concurrency=concurrency,
        request_rate=rate,
        repeats=experiment.repeats,
        num_requests=count,
    )


def is_scored(prompts: str) -> bool:
    """Whether answers to prompts of this kind are scored; folders of earlier runs call them "judged"."""
    return prompts in ("scored", "judged")


def trace_name(path: str) -> str:
    """The trace's name within the name of its cell."""
    return re.sub(r"[^\w.]+", "_", Path(path).stem).strip(".") or "trace"


def _prompts(cfg: Any, length: int | None) -> str:
    return cfg.dataset.name if length is None else f"{length}"


def prompt_lens(cfg: Any) -> list[int | None]:
    """The prompt lengths of a run in tokens; [None] if the dataset determines them."""
    experiment = cfg.experiment
    if experiment.prompt_lens:
        return list(experiment.prompt_lens)
    if experiment.doubling_from is not None:
        return [*_doubling(experiment.doubling_from, cfg.model.max_len, cfg.workload.output_len)]
    return list(cfg.dataset.prompt_lens or [cfg.workload.prompt_len])


def _doubling(first: int, max_len: int, output_len: int) -> list[int]:
    """Lengths in tokens: first, 2 x first, ..., and finally the longest that fits in `max_len` with `output_len`."""
    longest = max_len - output_len
    lengths = [first]
    while lengths[-1] * 2 < longest:
        lengths.append(lengths[-1] * 2)
    return [*lengths, longest] if lengths[-1] < longest else lengths


def blocks(arms: list[Arm], repeats: int) -> list[Block]:
    """The order of measurement. Two arms alternate as A B B A A B, so that a drift of the machine favours neither.

    Only one arm's engines run at a time, because idle engines use cores and memory too. Consecutive repeats of an arm
    share one start.
    """
    order = [(arm, repeat) for repeat in range(repeats) for arm in (arms if repeat % 2 == 0 else list(reversed(arms)))]
    return [
        Block(pairs[0][0], [repeat for _, repeat in pairs])
        for pairs in (list(group) for _, group in groupby(order, key=lambda pair: pair[0].name))
    ]
