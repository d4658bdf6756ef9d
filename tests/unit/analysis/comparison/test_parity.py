"""Requests of two arms, token by token."""

from typing import Any

import polars as pl

from wp1.analysis.base import tables
from wp1.analysis.comparison.parity import Basis, in_words, margin_of, parity, why_not


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
        "1 of 3 requests gave the same tokens; the earliest divergence is at token 2 (c-conc1/r0/1)"
    )


def test_an_answer_that_only_ends_sooner_differs_at_its_end() -> None:
    found = parity(_arm("agg", ([1, 2, 3], "ok")), _arm("disagg", ([1, 2], "ok")))
    assert found["first_difference"] == {"request": "c-conc1/r0/0", "token": 3}


def test_only_what_both_answered_is_compared() -> None:
    found = parity(_arm("agg", ([1], "ok"), ([], "error")), _arm("disagg", ([1], "ok"), ([2], "ok")))
    assert (found["requests"], found["compared"], found["same"]) == (2, 1, 1)
    assert in_words(found).endswith("; 1 more were not answered by both")
    nothing = parity(_arm("agg", ([], "error")), _arm("disagg", ([1], "ok")))
    assert in_words(nothing) == "no request was answered by both arms, so none could be compared"


def test_warm_ups_are_not_compared() -> None:
    assert parity(_arm("agg", ([1], "ok"), warmup=True), _arm("disagg", ([1], "ok"), warmup=True))["requests"] == 0


def _again(arm: str, *asked: tuple[str, list[int], list[float]], parted: bool = False) -> pl.DataFrame:
    return pl.DataFrame(
        [
            {"request_id": f"{arm}/{name}", "arm": arm, "cell": "c-conc1", "repeat": 0, "status": "ok",
             "token_ids": ids, "margins": margins, "parted": parted}
            for name, ids, margins in asked
        ],
        schema=tables.CONTROL_SCHEMA,
    )  # fmt: skip


ONE, TWO, THREE = (f"c-conc1/r0/{n}" for n in range(3))


def test_partings_are_judged_by_how_close_the_two_best_tokens_were() -> None:
    """Three diverge: by 0.1 nats, by 3 nats, and one that was not asked again."""
    a = _arm("agg", ([1, 2, 3], "ok"), ([1, 2, 3], "ok"), ([5, 6], "ok"), ([7], "ok"))
    b = _arm("disagg", ([1, 2, 9], "ok"), ([1, 8, 9], "ok"), ([5, 9], "ok"), ([7], "ok"))
    again = pl.concat(
        [
            _again("agg", (ONE, [1, 2, 3], [2.0, 2.0, 0.1]), (TWO, [1, 2, 3], [2.0, 0.1, 2.0])),
            # The most that either arm had counts: this one was sure of its other token.
            _again("disagg", (TWO, [1, 8, 9], [2.0, 3.0, 2.0])),
        ]
    )
    found = parity(a, b, Basis(again=again, margin=0.25))
    assert found["parted"] == {
        "within": 1, "beyond": 1, "unknown": 1, "furthest": [{"request": TWO, "token": 2, "nats": 3.0}],
    }  # fmt: skip
    assert {arm: (of["again"], of["same"]) for arm, of in found["itself"].items()} == {"agg": (2, 2), "disagg": (1, 1)}
    assert in_words(found, "**") == (
        "1 of 4 requests gave the same tokens; the earliest divergence is at token 2 (c-conc1/r0/1); "
        "the same arm against itself: 2 of 2 (agg), 1 of 1 (disagg); "
        "where they diverge, the two best tokens were within 0.25 nats in 1 of 3, which rounding explains; "
        "in 1 the distance is unknown; "
        "**in 1 they were further apart, which rounding does not explain** (nats: 3 at token 2 of c-conc1/r0/1)"
    )


def test_what_went_another_way_before_says_nothing_of_a_parting() -> None:
    a, b = _arm("agg", ([1, 2, 3], "ok")), _arm("disagg", ([1, 2, 9], "ok"))
    found = parity(a, b, Basis(again=_again("agg", (ONE, [1, 8, 3], [2.0, 0.1, 0.1]))))
    assert found["parted"]["unknown"] == 1
    assert in_words(found).endswith("where they diverge is unknown, as no request was asked again")
    # The arm does not agree with itself either, where its two best were close.
    assert found["itself"]["agg"] == {
        "again": 1, "same": 0, "parted": {"within": 1, "beyond": 0, "unknown": 0, "furthest": []},
    }  # fmt: skip


def test_repeats_of_a_question_are_a_control_that_costs_nothing() -> None:
    twice = pl.concat(
        [
            _arm("agg", ([1, 2], "ok"), ([3, 4], "ok")),
            _arm("agg", ([1, 2], "ok"), ([3, 5], "ok")).with_columns(
                pl.col("request_id").str.replace("/r0/", "/r1/"), repeat=pl.lit(1, pl.Int64)
            ),
        ]
    )
    same = parity(twice, twice.with_columns(arm=pl.lit("disagg")), Basis(alike=True))["itself"]
    assert [(of["again"], of["same"]) for of in same.values()] == [(2, 1), (2, 1)]
    # Random prompts are others in every repeat.
    assert parity(twice, twice, Basis(alike=False))["itself"]["agg"]["again"] == 0


def test_what_was_asked_again_because_it_parted_is_no_fair_control() -> None:
    a, b = _arm("agg", ([1, 2], "ok")), _arm("disagg", ([1, 3], "ok"))
    found = parity(a, b, Basis(again=_again("disagg", (ONE, [1, 2], [2.0, 0.2]), parted=True)))
    assert found["itself"]["disagg"]["again"] == 0
    assert found["parted"]["within"] == 1


def test_sampled_answers_and_other_prompts_are_not_compared() -> None:
    a, b = _arm("agg", ([1], "ok"), ([2], "ok")), _arm("disagg", ([1], "ok"), ([3], "ok"))
    found = parity(a, b, Basis(why_not="answers were sampled"))
    assert (found["requests"], found["compared"], found["same"]) == (2, 0, 0)
    assert in_words(found) == "not compared: answers were sampled"
    other = b.with_columns(prompt_tokens=pl.when(pl.col("request_id").str.ends_with("/1")).then(9))
    found = parity(a, other)
    assert (found["compared"], found["same"], found["other_prompts"]) == (1, 1, 1)
    assert in_words(found) == "1 of 1 requests gave the same tokens; 1 more had different prompts"


def test_arms_of_another_rope_or_temperature_need_not_agree() -> None:
    greedy: dict[str, Any] = {"workload": {"temperature": 0.0}, "arms": {"a": {"rope": None}, "b": {"rope": None}}}
    assert why_not(greedy) is None
    assert "workload.temperature=0.2" in (why_not(greedy | {"workload": {"temperature": 0.2}}) or "")
    assert "rotary" in (why_not(greedy | {"arms": {"a": {"rope": {"type": "auto"}}, "b": {"rope": None}}}) or "")


def test_the_margin_is_that_of_the_coarsest_type() -> None:
    pools = [{"engines": [{"settings": {"dtype": kind}} for kind in kinds]} for kinds in (["float32"], ["float16"])]
    assert margin_of(pools[:1]) == 0.25 / 2**16
    assert margin_of(pools) == 0.25 / 2**3
    assert margin_of([{"engines": [{"settings": {"dtype": "fp4"}}]}]) == margin_of([]) == 0.25
