"""The search for goodput: the highest request rate up to which 90 % of requests keep the SLO, by bisection.

From a first guess, the rate is doubled until a probe fails, or halved until one passes. Then the gap between the two is
halved (on a logarithmic scale) until it is narrow enough or time is up. Each probe is a cell like any other, with
repeats and records; its place in the search is a line of goodput.jsonl.
"""

import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl

from wp1.analysis.base import aggregates, cells, tables
from wp1.analysis.load.probes import bracket, planned_probes
from wp1.core import files
from wp1.core.plan import Arm, Cell, cell_of
from wp1.core.records import Probe
from wp1.core.run_files import GOODPUT, RECORDS

# The search gives up at rates lower than the first guess by more than this factor.
FLOOR = 64.0


def next_rate(path: Sequence[Probe], first: float, within: float) -> float | str:
    """The rate (requests/s) to try next, or the reason why the search has ended.

    within: the relative width of the bracket at which the search ends.
    """
    low, high = bracket(path)
    if low is None and high is None:
        return _rounded(first)
    if high is None:
        assert low is not None
        return _rounded(2 * low)
    if low is None:
        return _rounded(high / 2) if high > first / FLOOR else "no rate keeps the SLO"
    middle = _rounded(math.sqrt(low * high))
    # Rounding must not return a rate that has been tried.
    return middle if high / low > 1 + within and low < middle < high else f"narrowed to {within:.0%}".replace("%", " %")


def _rounded(rate: float) -> float:
    """The rate to three digits, as in a cell's name."""
    return float(f"{rate:.3g}")


def first_guess(requests: pl.DataFrame) -> float:
    """The highest throughput (requests/s) among the cells of this length; 1 if there is none."""
    done = [
        rows.filter(pl.col("status") == "ok").height / seconds
        for _, rows in requests.group_by("cell")
        if (seconds := aggregates.span(rows)) > 0
    ]
    return max([rate for rate in done if rate > 0], default=1.0)


Measure = Callable[[Cell, list[int]], Awaitable[None]]


def lengths_of(arm: Arm, skipped: Sequence[str]) -> list[int]:
    """The prompt lengths (tokens) of an arm's cells that are not skipped."""
    return list(dict.fromkeys(cell.prompt_len or 0 for cell in arm.cells if cell.name not in skipped))


async def search(cfg: Any, arm: str, lengths: Sequence[int], run_dir: Path, measure: Measure) -> None:
    """Searches an arm's goodput at these prompt lengths (tokens). measure: runs repeats of a cell into records.jsonl.

    The search at a length ends when the bracket is narrow enough, when no rate is left to try, or when the next probe
    would exceed `experiment.goodput_budget_s`.
    """
    with files.appended(GOODPUT.at(run_dir)) as out:

        def keep(probe: Probe) -> None:
            out.write(f"{files.json_text(asdict(probe))}\n".encode())
            out.flush()

        for length in lengths:
            await _at_length(cfg, arm, length, run_dir, measure, keep)


async def _at_length(
    cfg: Any, arm: str, length: int, run_dir: Path, measure: Measure, keep: Callable[[Probe], None]
) -> None:
    experiment, limits = cfg.experiment, aggregates.limits(cfg.slo)
    begin = time.monotonic()
    before = _measured(run_dir, arm, length)
    first = first_guess(before)
    path = planned_probes(before, arm, length, limits)
    for probe in path:
        keep(probe)

    def end(why: str) -> None:
        keep(Probe(arm, length, len(path), seconds=round(time.monotonic() - begin, 3), ended=why))

    while True:
        rate = next_rate(path, first, experiment.goodput_within)
        if isinstance(rate, str):
            return end(rate)
        cell = cell_of(cfg, arm, length, rate, cfg.workload.concurrency)
        needed = experiment.repeats * (cell.num_requests or 0) / rate
        if time.monotonic() - begin + needed > experiment.goodput_budget_s:
            return end(f"the next probe, {rate:g} requests/s, would exceed {experiment.goodput_budget_s:g} s")
        path.append(await _probe(cell, len(path), run_dir, measure, limits))
        keep(path[-1])


async def _probe(cell: Cell, number: int, run_dir: Path, measure: Measure, limits: aggregates.Limits) -> Probe:
    """Measures the repeats of a rate, stopping early once it has more misses than all its repeats may have."""
    begin, repeat = time.monotonic(), 0
    attained: float | None = None
    for repeat in range(cell.repeats):
        await measure(cell, [repeat])
        rows = _measured(run_dir, cell.arm, cell.prompt_len or 0).filter(pl.col("cell") == cell.name)
        attained = aggregates.attainment(rows, limits)
        allowed = (1 - aggregates.GOODPUT_ATTAINMENT) * cell.repeats * (cell.num_requests or 0)
        if (1 - (attained or 0.0)) * rows.height > allowed:
            break
    return Probe(
        arm=cell.arm,
        prompt_len=cell.prompt_len or 0,
        number=number,
        rate=cell.request_rate,
        cell=cell.name,
        repeats=repeat + 1,
        attainment=attained,
        seconds=round(time.monotonic() - begin, 3),
    )


def _measured(run_dir: Path, arm: str, length: int) -> pl.DataFrame:
    rows = tables.requests(RECORDS.at(run_dir)).filter(~pl.col("warmup") & (pl.col("arm") == arm))
    names = [name for name in rows["cell"].unique() if cells.parse(name).prompt_len == length]
    return rows.filter(pl.col("cell").is_in(names))
