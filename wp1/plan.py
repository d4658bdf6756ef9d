"""From a configuration to what will be measured: arms, their cells, and the order of it all. Pure."""

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
    concurrency: int  # closed loop; ignored where request_rate > 0
    request_rate: float  # requests/s
    repeats: int


@dataclass(frozen=True)
class Arm:
    """One scheduler configuration and its cells. Arms of a run have the same cells, but for their arm."""

    name: str
    scheduler: Any  # a node of the configuration
    cells: list[Cell]


@dataclass(frozen=True)
class Stint:
    """Repeats of all cells of an arm with its engines started once."""

    arm: Arm
    repeats: list[int]


def plan(cfg: Any) -> list[Arm]:
    """The arms of a run: those that the configuration compares, else the scheduler that `scheduler=` names."""
    schedulers = dict(cfg.arms) if cfg.arms else {cfg.scheduler.mode: cfg.scheduler}
    return [Arm(name, scheduler, _cells(cfg, name)) for name, scheduler in schedulers.items()]


def _cells(cfg: Any, arm: str) -> list[Cell]:
    """Every prompt length at every request rate, short prompts and low rates first."""
    workload = cfg.workload
    if workload.prompts == "trace":
        # Lengths and arrivals are the trace's.
        name = f"{trace_name(workload.trace_path)}-speed{workload.trace_speed:g}"
        return [Cell(arm, name, None, workload.concurrency, 0.0, cfg.experiment.repeats)]
    lengths = cfg.experiment.prompt_lens or [workload.prompt_len]
    rates = cfg.experiment.request_rates if cfg.experiment.request_rates is not None else [workload.request_rate]
    return [
        Cell(
            arm=arm,
            name=f"{_prompts(cfg, length)}-{f'rate{rate:g}' if rate > 0 else f'conc{workload.concurrency}'}",
            prompt_len=length if has_length(workload.prompts) else None,
            concurrency=workload.concurrency,
            request_rate=rate,
            repeats=cfg.experiment.repeats,
        )
        for length in lengths
        for rate in rates
    ]


def has_length(prompts: str) -> bool:
    """Whether prompts of this kind are made to a length, rather than having their own."""
    return prompts in ("random", "text")


def trace_name(path: str) -> str:
    """What a trace is called in the name of its cell."""
    return re.sub(r"[^\w.]+", "_", Path(path).stem).strip(".") or "trace"


def _prompts(cfg: Any, length: int | None) -> str:
    return f"{length}" if has_length(cfg.workload.prompts) else cfg.dataset.name


def stints(arms: list[Arm], repeats: int) -> list[Stint]:
    """Who is measured when. Two arms take turns as A B B A A B, so that a drift of the machine favours neither.

    Only one arm's engines run at a time, as idle ones use cores and memory too; repeats that follow each other under
    one arm share its start.
    """
    order = [(arm, repeat) for repeat in range(repeats) for arm in (arms if repeat % 2 == 0 else list(reversed(arms)))]
    return [
        Stint(pairs[0][0], [repeat for _, repeat in pairs])
        for pairs in (list(group) for _, group in groupby(order, key=lambda pair: pair[0].name))
    ]
