"""The search for goodput: the rates it tries, and that it finds the capacity of a simulated engine."""

import asyncio
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import Compose
from wp1.analysis.base.run_tables import RunTables
from wp1.analysis.load import probes
from wp1.analysis.load.probes import Probe, bracket
from wp1.core import plan
from wp1.core.jsonl import RecordWriter
from wp1.core.records import Request, new_record
from wp1.runner import goodput_search
from wp1.runner.goodput_search import next_rate


def _probe(rate: float, attainment: float, number: int = 0) -> Probe:
    return Probe("agg", 64, number, rate, f"64-rate{rate:g}", False, 3, attainment)


def test_rates_double_until_one_fails_and_then_the_gap_is_halved() -> None:
    path = [_probe(1, 1.0)]
    assert next_rate(path, 1, 0.1) == 2
    path += [_probe(2, 0.95), _probe(4, 0.5)]
    assert next_rate(path, 1, 0.1) == pytest.approx(math.sqrt(8), rel=0.01)
    assert bracket(path) == (2, 4)
    assert next_rate([_probe(2, 0.95), _probe(2.1, 0.8)], 1, 0.1) == "narrowed to 10 %"


def test_rates_halve_until_one_passes_and_not_for_ever() -> None:
    assert next_rate([_probe(8, 0.1)], 8, 0.1) == 4
    assert next_rate([_probe(8, 0.1), _probe(0.1, 0.0)], 8, 0.1) == "no rate keeps the SLO"


def test_a_rate_that_passed_above_one_that_failed_is_luck() -> None:
    assert bracket([_probe(1, 1.0), _probe(2, 0.6), _probe(4, 1.0)]) == (1, 2)


@given(st.floats(0.02, 500), st.floats(0.05, 200))
def test_it_closes_in_on_any_capacity(capacity: float, first: float) -> None:
    path: list[Probe] = []
    while not isinstance(rate := next_rate(path, first, 0.1), str):
        path.append(_probe(rate, 1.0 if rate <= capacity else 0.5, len(path)))
        assert len(path) < 40
    low, high = bracket(path)
    if low is None:
        assert capacity < first / 30
    else:
        assert high is not None
        assert low <= capacity < high <= low * 1.1 * 1.01
    assert len({probe.rate for probe in path}) == len(path)


class Engine:
    """Writes records as an engine would that serves `capacity` requests/s, without taking the time."""

    def __init__(self, run_dir: Path, capacity: float) -> None:
        self.run_dir, self.capacity, self.clock = run_dir, capacity, 1000.0
        self.asked: list[tuple[str, list[int]]] = []

    async def measure(self, cell: plan.Cell, repeats: list[int]) -> None:
        self.asked.append((cell.name, repeats))
        with RecordWriter(self.run_dir / "records.jsonl") as out:
            for repeat in repeats:
                free = self.clock
                for n in range(cell.num_requests or 0):
                    name = f"agg/{cell.name}/r{repeat}/{n}"
                    due = self.clock + n / cell.request_rate
                    free = max(free, due) + 1 / self.capacity
                    record = new_record(Request(name, "agg", cell.name, repeat, [1], 1, n), due)
                    record.t_sent, record.status, record.output_tokens = due, "ok", 1
                    record.t_tokens, record.t_end = [free], free
                    out.write(record)
                self.clock = free + 1


def _search(cfg: Any, engine: Engine) -> list[Probe]:
    asyncio.run(goodput_search.search(cfg, "agg", cfg.experiment.prompt_lens, engine.run_dir, engine.measure))
    return RunTables(engine.run_dir).probes


E2 = (
    "experiment=e2",
    "experiment.prompt_lens=[64]",
    "experiment.goodput_budget_s=1000000",
    "experiment.arrivals_s=50",
)


def test_the_search_finds_what_an_engine_carries(config: Compose, tmp_path: Path) -> None:
    engine = Engine(tmp_path, 5.0)
    path = _search(config(*E2, "slo.ttft_ms=500"), engine)
    low, high = bracket([probe for probe in path if probe.rate])
    # A queue at 5.5 requests/s grows by a tenth of a second each second, so in 50 s more than a tenth of them misses.
    assert low is not None
    assert high is not None
    assert low == pytest.approx(5, rel=0.12)
    assert high <= low * 1.11
    assert path[-1].ended == "narrowed to 10 %"
    # If the first repeat has more misses than all of them may have, the others are not measured.
    assert {probe.repeats for probe in path if probe.rate and not probes.passes(probe)} == {1}
    assert {probe.repeats for probe in path if probe.rate and probes.passes(probe)} == {3}


def test_the_search_ends_in_time_and_says_so(config: Compose, tmp_path: Path) -> None:
    engine = Engine(tmp_path, 5.0)
    path = _search(config(*E2, "experiment.goodput_budget_s=100", "slo.ttft_ms=500"), engine)
    assert [asdict(probe)["rate"] for probe in path] == [None]
    assert "1 requests/s, would exceed 100 s" in (path[0].ended or "")
    assert engine.asked == []


def test_rates_of_the_experiment_are_where_it_begins(config: Compose, tmp_path: Path) -> None:
    cfg = config(*E2, "experiment.request_rates=[2,8]", "slo.ttft_ms=500", "workload.num_requests=100")
    engine = Engine(tmp_path, 5.0)
    for cell in plan.plan(cfg)[0].cells:
        asyncio.run(engine.measure(cell, [0, 1, 2]))
    path = _search(cfg, engine)
    assert [(probe.rate, probe.planned) for probe in path[:3]] == [(2, True), (8, True), (4, False)]
