"""How many requests were where, from begin and end of their stays."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wp1.analysis.base import tables
from wp1.analysis.load import occupancy

STAY = st.tuples(st.floats(0, 90), st.floats(0.001, 30)).map(lambda found: (found[0], found[0] + found[1]))


@given(st.lists(STAY, max_size=20), st.integers(1, 40))
def test_slices_hold_every_second_and_every_peak(of_place: list[tuple[float, float]], count: int) -> None:
    found = np.array(of_place).reshape(-1, 2)
    edges = np.linspace(0, 120, count + 1)
    mean, most = occupancy.sliced(found, edges)
    assert float((mean * np.diff(edges)).sum()) == pytest.approx(float((found[:, 1] - found[:, 0]).sum()), abs=1e-6)
    times, counts = occupancy.steps(found)
    assert most.max() == max([0, *counts])
    assert all(mean <= most + 1e-9)
    for t in edges[:-1]:
        there = sum(begin <= t < end for begin, end in of_place)
        assert there == (counts[np.searchsorted(times, t, side="right") - 1] if (times <= t).any() else 0)


def _stays(**times: object) -> dict[str, list[tuple[float, float]]]:
    row = {"request_id": "disagg/c/r0/0", "arm": "disagg", "status": "ok", "handoff_id": "h", **times}
    frame = pl.DataFrame([row], schema=tables.RECORD_SCHEMA)
    return {name: [tuple(stay) for stay in found.tolist()] for name, found in occupancy.stays(frame).items()}


WAY = {"t_sent": 1.0, "t_queued": 2.0, "t_engine_first_token": 5.0, "t_decode_sent": 6.0, "t_decode_scheduled": 7.0}


def test_a_request_is_in_one_place_at_a_time() -> None:
    assert _stays(**WAY, t_end=9.0) == {
        "prefill_waiting": [(1, 2)], "prefilling": [(2, 5)], "decode_waiting": [(5, 6)], "transferring": [(6, 7)],
        "decoding": [(7, 9)],
    }  # fmt: skip
    # A decode engine that was asked early holds nobody up.
    early = _stays(**WAY | {"t_decode_sent": 3.0}, t_end=9.0)
    assert (early["decode_waiting"], early["transferring"]) == ([], [(5, 7)])


@pytest.mark.parametrize(
    ("reached", "place", "stay"),
    [
        ("t_sent", "prefill_waiting", (1, 9)),
        ("t_queued", "prefilling", (2, 9)),
        ("t_decode_sent", "transferring", (6, 9)),
    ],
)
def test_a_request_that_failed_stays_where_it_was(reached: str, place: str, stay: tuple[float, float]) -> None:
    names = list(WAY)
    known = {name: WAY[name] for name in names[: names.index(reached) + 1]}
    found = _stays(**known, status="error", t_end=9.0)
    assert found[place] == [stay]
    assert max(end for of in found.values() for _, end in of) == 9
