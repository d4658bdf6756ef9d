"""A stall of the event loop is recorded with its duration."""

import asyncio
import gc
import time
import weakref
from collections.abc import Iterator

import pytest

from wp1.core.plan import Cell
from wp1.core.records import LoopLag
from wp1.runner import loop_lag


def _lags(held_s: float) -> list[LoopLag]:
    rows: list[LoopLag] = []

    async def go() -> None:
        async with loop_lag.watched(Cell("agg", "c", None, 1, 0.0, 1), 0, rows.append):
            await asyncio.sleep(0.05)
            time.sleep(held_s)
            await asyncio.sleep(0.05)

    asyncio.run(go())
    return rows


def test_every_timer_that_a_stall_hid_counts() -> None:
    lags = [lag for row in _lags(0.3) for lag in row.lags]
    assert max(lags) > 0.25
    # A timer is due every 20 ms; of those due within the 0.3 s stall, half were more than 0.15 s late.
    assert sum(lag > 0.15 for lag in lags) >= 6


def test_rows_say_whose_they_are() -> None:
    [row] = _lags(0.0)
    assert (row.arm, row.cell, row.repeat) == ("agg", "c", 0)
    assert 3 <= len(row.lags) < loop_lag.SAMPLES


class Knot:
    """Garbage that only the collector finds."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without the tests' own around all of them."""
    gc.unfreeze()
    monkeypatch.setattr(loop_lag, "_open", [])
    yield
    gc.freeze()


@pytest.mark.usefixtures("alone")
def test_the_collector_leaves_alone_what_was_there_until_all_has_ended() -> None:
    with loop_lag.garbage_left():
        knot = Knot()
        first = weakref.ref(knot)
        with loop_lag.garbage_left():
            del knot
            gc.collect()
            assert first() is not None
        # Objects frozen by the inner one stay frozen, or the next one would scan everything.
        gc.collect()
        assert first() is not None
        second = weakref.ref(Knot())
        with loop_lag.garbage_left():
            assert second() is None, "what came since is gone through"
    gc.collect()
    assert first() is None
    assert gc.get_freeze_count() == 0


@pytest.mark.usefixtures("alone")
def test_a_repeat_that_fails_gives_the_collector_all_back() -> None:
    with pytest.raises(ValueError, match="it failed"), loop_lag.garbage_left():
        raise ValueError("it failed")
    assert gc.get_freeze_count() == 0
