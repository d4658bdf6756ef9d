"""From a configuration to what will be measured: arms and their cells. Pure."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Cell:
    """One prompt length at one load, with its repeats, under one arm."""

    arm: str
    name: str
    prompt_len: int | None  # tokens; None for a dataset's prompts
    concurrency: int  # closed loop; ignored where request_rate > 0
    request_rate: float  # requests/s
    repeats: int


@dataclass(frozen=True)
class Arm:
    """One scheduler configuration and its cells."""

    name: str
    cells: list[Cell]


def plan(cfg: Any) -> list[Arm]:
    """The arms of a run; today one, the scheduler that `scheduler=` names, with one cell."""
    workload = cfg.workload
    arm = cfg.scheduler.mode
    prompts = f"{workload.prompt_len}" if workload.prompts == "random" else cfg.dataset.name
    load = f"rate{workload.request_rate:g}" if workload.request_rate > 0 else f"conc{workload.concurrency}"
    cell = Cell(
        arm=arm,
        name=f"{prompts}-{load}",
        prompt_len=workload.prompt_len if workload.prompts == "random" else None,
        concurrency=workload.concurrency,
        request_rate=workload.request_rate,
        repeats=cfg.experiment.repeats,
    )
    return [Arm(arm, [cell])]
