"""From a configuration to what will be measured: arms, their cells, and the order of it all. Pure."""

from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from wp1.schema import open_loop


@dataclass(frozen=True)
class Cell:
    """One prompt length at one load, with its repeats, under one arm."""

    arm: str
    name: str
    prompt_len: int | None  # tokens; None for a dataset's prompts
    concurrency: int  # closed loop; ignored where request_rate > 0
    request_rate: float  # requests/s
    repeats: int
    num_requests: int | None = None  # a repeat; None: the whole dataset


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
    """Every prompt length at every load, short prompts and low loads first.

    Loads are request rates where there are any, else numbers of requests at a time.
    """
    experiment, workload = cfg.experiment, cfg.workload
    lengths = experiment.prompt_lens or [workload.prompt_len]
    rates = experiment.request_rates if experiment.request_rates is not None else [workload.request_rate]
    loads = [(rate, workload.concurrency) for rate in rates]
    if experiment.concurrencies is not None and not open_loop(cfg):
        loads = [(0.0, concurrency) for concurrency in experiment.concurrencies]
    cells = [cell_of(cfg, arm, length, rate, concurrency) for length in lengths for rate, concurrency in loads]
    if experiment.concurrencies is None or workload.num_requests is None:
        return cells
    # Fewer requests than are to run at a time would not be that load.
    return [replace(cell, num_requests=max(workload.num_requests, cell.concurrency)) for cell in cells]


def cell_of(cfg: Any, arm: str, length: int | None, rate: float, concurrency: int = 1) -> Cell:
    """The cell of one prompt length (tokens) at one load: a rate in requests/s, or `concurrency` where that is 0."""
    return Cell(
        arm=arm,
        name=f"{_prompts(cfg, length)}-{f'rate{rate:g}' if rate > 0 else f'conc{concurrency}'}",
        prompt_len=length if cfg.workload.prompts == "random" else None,
        concurrency=concurrency,
        request_rate=rate,
        repeats=cfg.experiment.repeats,
        num_requests=cfg.workload.num_requests,
    )


def _prompts(cfg: Any, length: int | None) -> str:
    return f"{length}" if cfg.workload.prompts == "random" else cfg.dataset.name


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
