"""An engine's counts, aggregated over time."""

import pytest

from wp1.core.records import EngineStats
from wp1.serving import meter as module
from wp1.serving.meter import Meter


def test_steps_are_aggregated_and_written_when_the_engine_becomes_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.01, 0.02, 5.0, 5.2])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    rows: list[EngineStats] = []
    meter = Meter("agg", rows.append)
    meter("agg-0", 0.2, 1, 3, 0)
    meter("agg-0", 0.6, 2, 0, 1)
    assert rows == []
    meter("agg-0", 0.1, 0, 0, 0)
    [row] = rows
    assert (row.t, row.arm, row.engine, row.steps) == (0.02, "agg", "agg-0", 3)
    assert row.kv_use == pytest.approx(0.3)
    assert (row.kv_use_peak, row.running, row.waiting, row.preemptions) == (0.6, 2, 3, 1)
    meter("agg-0", 0.5, 1, 0, 0)
    meter("agg-0", 0.5, 1, 0, 0)
    assert (rows[1].t, rows[1].steps) == (5.2, 2)
