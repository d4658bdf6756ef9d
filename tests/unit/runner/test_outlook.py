"""Estimates of the time left for a run, before it starts and while it is running."""

import time
from typing import Any

import pytest
from rich.console import Console
from rich.progress import Progress

from wp1.core.plan import Arm, Cell
from wp1.core.progress import Done
from wp1.core.records import Request, RequestRecord, new_record
from wp1.runner.budget import Repeat
from wp1.runner.console import Tally, _Left
from wp1.runner.outlook import Outlook


def _cell(arm: str, length: int, repeats: int = 2) -> Cell:
    return Cell(arm, f"{length}-conc1", length, 1, 0.0, repeats, 4)


def _outlook(budget_s: float | None = None, timeout_s: float = 600.0, done: list[Done] | None = None) -> Outlook:
    """Two arms, prompts of 100, 200 and 400 tokens, two repeats of four requests each."""
    arms = [Arm(name, None, [_cell(name, length) for length in (100, 200, 400)]) for name in ("a", "b")]
    floors: dict[str, Any] = {"a": None, "b": None}
    return Outlook(arms, floors, lambda cell: cell.num_requests or 0, timeout_s, budget_s, done or [], [], [])


def test_nothing_is_said_where_nothing_is_known() -> None:
    assert _outlook().left(0.0) is None
    assert _outlook().said(0.0) is None


def test_before_the_engines_start_it_is_what_the_peaks_allow() -> None:
    outlook = _outlook(timeout_s=3.0)
    outlook.floors = {arm: lambda tokens: tokens / 100 for arm in "ab"}
    # 2 arms x 2 repeats x 4 requests x (1 + 2 + 4) s.
    assert outlook.left(0.0) == pytest.approx(112)
    said = outlook.said(0.0)
    assert said is not None
    assert said.startswith("at least 2 min, even at this device's peak rates")
    assert "a request of 400 tokens or more would take longer than workload.timeout_s=3" in said


def test_after_the_warm_up_it_is_by_the_warm_up() -> None:
    outlook = _outlook(budget_s=900)
    outlook.warmups["a"] = [Repeat(100, 1, 0.0, 1, 0.5)]
    assert outlook.left(0.0) == pytest.approx(2 * 2 * 4 * 0.5 * (1 + 2 + 4))
    assert outlook.said(0.0) == (
        "about 56 s to go, estimated from the requests so far; cells beyond experiment.time_budget_s=900 are skipped"
    )


def test_it_counts_what_is_left_of_all_cells_in_all_arms() -> None:
    done = [Done("a", "100-conc1", 0, 4, 4.0, 0.0), Done("a", "200-conc1", 0, 4, 8.0, 0.0)]
    outlook = _outlook(done=done)
    # Three repeats are left of 100 tokens, three of 200, and four of 400; b is assumed to be like a.
    assert outlook.left(12.0) == pytest.approx(3 * 8 + 3 * 8 + 4 * 16)
    # The second repeat of 200 tokens is being measured.
    assert outlook.left(12.0, ("a", "200-conc1", 1)) == pytest.approx(3 * 8 + 2 * 8 + 4 * 16)
    # Engines start twice more, as long as before; a search may take its time.
    outlook.starts, outlook.starts_left, outlook.searches_s = [{"seconds": 30.0}], 2, 40.0
    assert outlook.left(12.0) == pytest.approx(112 + 60 + 40)


def test_what_will_be_skipped_is_not_counted() -> None:
    done = [Done("a", "100-conc1", 0, 4, 4.0, 0.0), Done("a", "200-conc1", 0, 4, 8.0, 0.0)]
    assert _outlook(budget_s=70, done=done).left(12.0) == pytest.approx(3 * 8 + 3 * 8)
    assert _outlook(timeout_s=3.9, done=done).left(12.0) == pytest.approx(3 * 8 + 3 * 8)


def test_a_request_that_would_run_into_its_timeout_is_foreseen() -> None:
    done = [Done("a", "100-conc1", 0, 4, 4.0, 0.0), Done("a", "200-conc1", 0, 4, 8.0, 0.0)]
    outlook = _outlook(timeout_s=3.9, done=done)
    found = outlook.reason_to_skip(outlook.arms[0], outlook.arms[0].cells[2], 12.0)
    assert found is not None
    assert found[0] == "a request would take about 4 s, more than workload.timeout_s=3.9: raise that to measure it"
    assert _outlook(timeout_s=4.1, done=done).reason_to_skip(outlook.arms[0], outlook.arms[0].cells[2], 12.0) is None
    # The first cell is measured whatever it takes.
    assert _outlook(timeout_s=0.1).reason_to_skip(outlook.arms[0], outlook.arms[0].cells[0], 0.0) is None


def test_the_line_says_how_long_the_whole_run_goes_on() -> None:
    with Progress(console=Console(quiet=True)) as progress:
        tally = Tally(progress, "agg 100-conc1", 4)
        assert tally.left_s(time.monotonic()) is None
        tally.expect(4, 0.0, 40.0, 300.0)
        now = time.monotonic()
        assert tally.left_s(now) == pytest.approx(340, abs=1)
        assert tally.left_s(now + 10) == pytest.approx(330, abs=1)
        # Three are left, and one took 20 s.
        tally.add(_record())
        assert tally.left_s(now + 20) == pytest.approx(60 + 300, abs=1)
        column = _Left()
        column.tally = tally
        assert "about" in column.render(progress.tasks[0]).plain
        # An open loop lasts at least until its last request is due.
        tally.expect(4, 100.0, 40.0, 0.0)
        tally.add(_record())
        assert tally.left_s(time.monotonic() + 1) == pytest.approx(99, abs=1)


def _record() -> RequestRecord:
    return new_record(Request("r", "agg", "100-conc1", 0, [1], max_tokens=4, seed=1), 0.0)
