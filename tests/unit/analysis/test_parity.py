"""Requests of two arms, token by token."""

import polars as pl

from wp1.analysis import tables
from wp1.analysis.parity import in_words, parity


def _arm(arm: str, *answers: tuple[list[int], str], warmup: bool = False) -> pl.DataFrame:
    return pl.DataFrame(
        [
            {"request_id": f"{arm}/c-conc1/r0/{n}", "arm": arm, "cell": "c-conc1", "repeat": 0, "warmup": warmup,
             "token_ids": ids, "status": status}
            for n, (ids, status) in enumerate(answers)
        ],
        schema=tables.RECORD_SCHEMA,
    )  # fmt: skip


def test_all_the_same() -> None:
    found = parity(_arm("agg", ([1, 2], "ok"), ([3], "ok")), _arm("disagg", ([1, 2], "ok"), ([3], "ok")))
    assert (found["compared"], found["same"], found["first_difference"]) == (2, 2, None)
    assert in_words(found) == "2 of 2 requests gave the same tokens"


def test_the_earliest_difference_is_named() -> None:
    a = _arm("agg", ([1, 2, 3], "ok"), ([1, 2, 3], "ok"), ([5, 6], "ok"))
    b = _arm("disagg", ([1, 2, 9], "ok"), ([1, 8, 9], "ok"), ([5, 6], "ok"))
    found = parity(a, b)
    assert found["first_difference"] == {"request": "c-conc1/r0/1", "token": 2}
    assert found["cells"] == {"c-conc1": {"compared": 3, "same": 1}}
    assert in_words(found) == (
        "1 of 3 requests gave the same tokens; of the others the earliest parts at token 2 (c-conc1/r0/1)"
    )


def test_an_answer_that_only_ends_sooner_differs_at_its_end() -> None:
    found = parity(_arm("agg", ([1, 2, 3], "ok")), _arm("disagg", ([1, 2], "ok")))
    assert found["first_difference"] == {"request": "c-conc1/r0/0", "token": 3}


def test_only_what_both_answered_is_compared() -> None:
    found = parity(_arm("agg", ([1], "ok"), ([], "error")), _arm("disagg", ([1], "ok"), ([2], "ok")))
    assert (found["requests"], found["compared"], found["same"]) == (2, 1, 1)
    assert in_words(found).endswith("; 1 more were not answered in both")
    nothing = parity(_arm("agg", ([], "error")), _arm("disagg", ([1], "ok")))
    assert in_words(nothing) == "no request was answered in both arms, so none could be compared"


def test_warm_ups_are_not_compared() -> None:
    assert parity(_arm("agg", ([1], "ok"), warmup=True), _arm("disagg", ([1], "ok"), warmup=True))["requests"] == 0
