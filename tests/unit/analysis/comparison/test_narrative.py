"""The words say what the figures show, and no more."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
import pytest

from wp1.analysis.base import metrics, tables
from wp1.analysis.comparison.figures import SCHEMA, compare
from wp1.analysis.comparison.narrative import in_words

UNITS = {figure.name: figure.metric.unit for figure in metrics.shown_in("comparison")}


def _rows(**cells: Mapping[str, tuple[float | None, float | None, bool | None]]) -> pl.DataFrame:
    """By cell (256_conc1 for 256-conc1) and metric: a, b, and whether the interval excludes zero."""
    rows: list[dict[str, Any]] = []
    for cell, of_cell in cells.items():
        for metric, (a, b, excludes) in of_cell.items():
            rows.append(
                {
                    "cell": cell.strip("_").replace("_", "-"), "metric": metric, "unit": UNITS[metric], "a": a, "b": b,
                    "delta": b - a if a is not None and b is not None else None,
                    "ratio": b / a if a and b is not None else None,
                    "excludes_zero": excludes, "n_b": 3,
                    # Of the bounds only their sign is read.
                    "low": None if a is None or b is None else (b - a) * (-1 if excludes is False else 0.99),
                    "high": None if a is None or b is None else (b - a) * 1.01,
                }
            )  # fmt: skip
    return pl.DataFrame(rows, schema=SCHEMA)


SAME = {"ttft_ms/mean": (100.0, 101.0, False), "e2e_ms/mean": (500.0, 501.0, False)}
QUEUE_FELL = {
    "ttft_ms/mean": (400.0, 200.0, True), "queue_ms/mean": (300.0, 90.0, True), "prefill_ms/mean": (99.0, 109.0, False),
    "handoff_ms/mean": (None, 50.0, None), "decode_step_ms/mean": (20.0, 20.0, False),
    "e2e_ms/mean": (700.0, 550.0, True), "decode_ms/mean": (301.0, 301.0, False),
}  # fmt: skip


def test_helped_and_by_which_phase() -> None:
    text = in_words(_rows(_1024_conc4=QUEUE_FELL), "agg", "disagg")
    assert "Over 1 cell, disagg improved on agg:\n\n- mean TTFT was lower, by 50 % for 1,024 tokens 4 at a time" in text
    assert "(200 ms instead of 400 ms, mostly queue −210 ms)" in text
    assert "mostly queue −210 ms, against handoff +50.0 ms" in text
    assert "Nothing shows that it was worse." in text


def test_hurt_by_the_handoff_where_decode_streams_the_first_token() -> None:
    cell = {
        "ttft_ms/mean": (100.0, 170.0, True), "queue_ms/mean": (2.0, 2.0, False),
        "prefill_ms/mean": (97.0, 97.0, False), "handoff_ms/mean": (None, 50.0, None),
        "decode_step_ms/mean": (20.0, 20.0, False), "e2e_ms/mean": (500.0, 550.0, True),
        "decode_ms/mean": (401.0, 401.0, False),
    }  # fmt: skip
    text = in_words(_rows(_256_conc1=cell), "agg", "disagg")
    assert "nothing shows that disagg improved on agg" in text
    assert "It was worse:\n\n- mean TTFT was higher, by 70 % for 256 tokens one at a time" in text
    assert "(170 ms instead of 100 ms, mostly handoff +50.0 ms)" in text


def test_a_difference_that_may_be_none_is_not_called_one() -> None:
    text = in_words(_rows(_256_conc1={**SAME, "ttft_ms/mean": (100.0, 300.0, False)}), "agg", "disagg")
    assert "nothing shows that disagg improved" in text
    assert "higher" not in text
    assert "No difference could be shown for 256 tokens one at a time in any tested metric." in text


def test_too_few_pairs_are_no_difference_either() -> None:
    text = in_words(_rows(_256_conc1={**SAME, "ttft_ms/mean": (100.0, 300.0, None)}), "agg", "disagg")
    assert "No difference could be shown" in text


def test_several_cells_are_one_clause() -> None:
    half = {**QUEUE_FELL, "ttft_ms/mean": (400.0, 300.0, True), "queue_ms/mean": (300.0, 190.0, True)}
    text = in_words(_rows(_256_conc1=SAME, _256_rate2=half, _1024_rate2=QUEUE_FELL), "agg", "disagg")
    assert "mean TTFT was lower in 2 of 3 cells, by 25 % to 50 %, most for 1,024 tokens at 2 requests/s" in text
    assert ", with queue the largest part in each of them" in text
    assert "No difference could be shown for 256 tokens one at a time in any tested metric." in text


def test_it_begins_with_where_e2e_changed_most() -> None:
    worse = {**SAME, "e2e_ms/mean": (500.0, 550.0, True)}
    slightly = {**SAME, "e2e_ms/mean": (500.0, 490.0, True)}
    text = in_words(_rows(_256_conc1=worse, _256_rate2=slightly, _1024_conc4=QUEUE_FELL), "agg", "disagg")
    assert text.startswith(
        "**End to end, disagg won most for 1,024 tokens 4 at a time, where mean E2E is 21 % lower (550 ms instead of "
        "700 ms), and lost most for 256 tokens one at a time, where mean E2E is 10 % higher (550 ms instead of "
        "500 ms).**"
    )
    only_worse = in_words(_rows(_256_conc1=worse), "agg", "disagg")
    assert only_worse.startswith("**End to end, disagg lost most for 256 tokens one at a time")
    assert "won most" not in only_worse
    assert in_words(_rows(_256_conc1=SAME), "agg", "disagg").startswith("Over 1 cell")


def test_more_of_an_attainment_is_better() -> None:
    cell = {**SAME, "slo_attainment": (0.5, 0.9, True), "failed_share": (0.0, 0.25, True)}
    text = in_words(_rows(_256_rate2=cell), "agg", "disagg")
    assert text.startswith(
        "**In SLO attainment, disagg won most for 256 tokens at 2 requests/s (90 % instead of 50 %).**"
    )
    assert "improved on agg:\n\n- SLO attainment was higher, by 40 points for 256 tokens at 2 requests/s" in text
    assert "It was worse:\n\n- the share of failed requests was higher, by 25 points" in text
    assert "(25 % instead of 0 %)" in text


def test_an_arm_that_answered_nothing_is_named() -> None:
    silent = {"ttft_ms/mean": (100.0, None, None), "e2e_ms/mean": (500.0, None, None)}
    assert in_words(_rows(_256_conc1=silent), "agg", "disagg") == (
        "No cell could be compared. Cannot compare 256 tokens one at a time: disagg did not answer a request."
    )
    both = in_words(_rows(_256_conc1={"e2e_ms/mean": (None, None, None)}, _512_conc1=SAME), "agg", "disagg")
    assert "neither agg nor disagg answered a request" in both
    assert "Over 1 cell" in both


def test_an_arm_that_was_sent_nothing_did_not_fail_to_answer() -> None:
    alone = {"e2e_ms/mean": (500.0, None, None), "failed_share": (0.0, None, None)}
    text = in_words(_rows(_16384_conc1=alone, _512_conc1=SAME), "yarn", "unscaled")
    assert (
        "Cannot compare 16,384 tokens one at a time: unscaled was sent no request there (see what was skipped)." in text
    )
    assert "did not answer" not in text


def test_nothing_at_all() -> None:
    assert in_words(pl.DataFrame(schema=SCHEMA), "agg", "disagg") == "No cell could be compared."


def test_a_change_by_a_factor() -> None:
    cell = {**SAME, "ttft_ms/mean": (100.0, 450.0, True), "prefill_ms/mean": (100.0, 450.0, True)}
    assert "by a factor of 4.5 for" in in_words(_rows(_256_conc1=cell), "agg", "disagg")


def test_the_phase_that_moved_the_other_way_explains_nothing() -> None:
    """Prefill fell by more than E2E rose: what made it rise is decode."""
    cell = {
        "ttft_ms/mean": (400.0, 100.0, None), "queue_ms/mean": (0.0, 0.0, False),
        "prefill_ms/mean": (400.0, 100.0, True),
        "e2e_ms/mean": (500.0, 520.0, True), "decode_ms/mean": (100.0, 420.0, True),
    }  # fmt: skip
    text = in_words(_rows(_256_conc1=cell), "agg", "disagg")
    assert "(520 ms instead of 500 ms, mostly decode +320 ms, against prefill −300 ms)" in text


def test_too_few_requests_are_no_sign_of_no_difference() -> None:
    few = {"ttft_ms/mean": (100.0, 150.0, None), "e2e_ms/mean": (500.0, 560.0, None)}
    alone = in_words(_rows(_256_conc1=few), "agg", "disagg")
    assert alone.startswith("Over 1 cell, no difference can be judged: an interval needs six requests")
    assert "hurt" not in alone
    beside = in_words(_rows(_256_conc1=few, _1024_conc1=SAME), "agg", "disagg")
    assert "No difference can be judged for 256 tokens one at a time" in beside
    assert "No difference could be shown for 1,024 tokens one at a time" in beside


def test_mostly_is_more_than_half() -> None:
    """Decode is 4.7 ms of 12.9, which is not most of them."""
    cell = {
        **SAME, "queue_ms/mean": (1.2, 2.3, True), "prefill_ms/mean": (26.0, 28.6, False),
        "handoff_ms/mean": (None, 4.4, None), "decode_ms/mean": (202.0, 206.7, False),
        "e2e_ms/mean": (229.0, 241.9, True),
    }  # fmt: skip
    text = in_words(_rows(_1024_conc1=cell), "agg", "disagg")
    assert "the largest part decode +4.7 ms)" in text
    assert "most of it" not in text
    assert "mostly" not in text


def test_percentiles_are_told_where_no_mean_moved() -> None:
    cell = {**SAME, "ttft_ms/p95": (629.0, 889.0, True), "queue_ms/mean": (21.7, 88.9, True)}
    text = in_words(_rows(_8192_rate2=cell), "agg", "disagg")
    assert (
        "It was worse:\n\n- p95 TTFT was higher, by 41 % for 8,192 tokens at 2 requests/s (889 ms instead of 629"
        in text
    )
    assert "in cells whose mean TTFT or E2E is not: queue +67.2 ms for 8,192 tokens at 2 requests/s" in text
    assert "No difference" not in text


def test_mean_and_percentile_are_one_clause() -> None:
    cell = {**SAME, "tpot_ms/mean": (9.0, 7.0, True), "tpot_ms/p95": (14.0, 7.0, True)}
    text = in_words(_rows(_256_conc1=cell, _512_conc1=SAME), "agg", "disagg")
    assert "\n- mean TPOT was lower, by 22 % for" in text
    assert "; p95 TPOT was lower, by 50 % for 256 tokens one at a time (7.0 ms instead of 14.0 ms)." in text


def test_a_rate_of_few_repeats_leans_and_is_not_judged() -> None:
    cell = {**SAME, "output_tokens_per_s": (21.8, 21.2, None)}
    text = in_words(_rows(_32768_rate2=cell), "agg", "disagg")
    assert "Output tokens/s of disagg were lower, with intervals that exclude zero, but 3 repeats are too few" in text
    assert "2.8 % for 32,768 tokens at 2 requests/s" in text
    assert "Nothing shows that it was worse." in text
    enough = in_words(_rows(_32768_rate2={**SAME, "output_tokens_per_s": (21.8, 21.2, True)}), "agg", "disagg")
    assert "It was worse:\n\n- output tokens/s was lower, by 2.8 % for" in enough
    assert "(21.2 tokens/s instead of 21.8 tokens/s)" in enough
    assert "too few to judge by" not in enough


def test_it_says_at_its_head_that_hardly_any_request_met_the_slo() -> None:
    faster = {**SAME, "e2e_ms/mean": (7449.0, 4632.0, True), "slo_attainment": (0.056, 0.167, False)}
    within = {**SAME, "e2e_ms/mean": (320.0, 256.0, True), "slo_attainment": (1.0, 1.0, False)}
    text = in_words(_rows(_1024_rate2=within, _32768_rate2=faster), "agg", "disagg")
    head, _, rest = text.partition("\n\n")
    assert "won most for 32,768 tokens at 2 requests/s, beyond capacity, where mean E2E is 38 % lower" in head
    assert "otherwise for 1,024 tokens at 2 requests/s (20 % lower)" in head
    assert rest.startswith(
        "**Hardly any request met the SLO** for 32,768 tokens at 2 requests/s (agg 5.6 %, disagg 17 %)"
    )
    one_that_serves = {**faster, "slo_attainment": (0.056, 0.5, True)}
    assert "beyond" not in in_words(_rows(_32768_rate2=one_that_serves), "agg", "disagg")


def test_answers_of_other_lengths_are_compared_by_their_tokens() -> None:
    """As `figures.compare` has it, nothing that grows with the answer has a verdict there."""
    cell = {
        "ttft_ms/mean": (16.9, 24.3, True), "tpot_ms/mean": (1.6, 2.1, True), "e2e_ms/mean": (56.9, 198.0, None),
        "e2e_ms/p95": (94.5, 371.0, None), "output_tokens_per_s": (149.0, 382.0, None),
    }  # fmt: skip
    unlike = {"4096-conc1": {"pairs": 15, "unlike": 12, "a": 9.5, "b": 80.8}}
    text = in_words(_rows(_4096_conc1=cell), "yarn", "unscaled", unlike)
    assert text.startswith(
        "**To the first token, unscaled lost most for 4,096 tokens one at a time, where mean TTFT is 44 % higher"
    )
    assert "**From token to token, unscaled lost most" in text
    assert "in 12 of 15 pairs of the same request (mean output tokens of yarn and unscaled: 9.5 and 80.8 for" in text
    assert "E2E is" not in text
    assert "E2E was" not in text
    assert "Output tokens/s of" not in text
    # Cells with answers of one length keep their E2E.
    alike = {**SAME, "e2e_ms/mean": (500.0, 550.0, True)}
    both = in_words(_rows(_256_conc1=alike, _4096_conc1=cell), "yarn", "unscaled", unlike)
    assert both.startswith("**End to end, unscaled lost most for 256 tokens one at a time")
    assert "are not judged there; TTFT and TPOT are" in both


def _measured(repeats: int, shift_ms: float, cells: int = 2) -> pl.DataFrame:
    """Two arms of several cells, of which the second is slower by so much, beside noise and a repeat effect of 5 %."""
    arms = []
    for n, arm in enumerate(("agg", "disagg")):
        rng = np.random.default_rng(n)
        for cell in range(cells):
            ttft = (200 + n * shift_ms + rng.normal(0, 3, (repeats, 12))) * (1 + 0.05 * rng.normal(size=(repeats, 1)))
            rows = [
                {
                    "request_id": f"{arm}/{256 << cell}-conc1/r{r}/{k}", "arm": arm, "cell": f"{256 << cell}-conc1",
                    "repeat": r, "warmup": False, "status": "ok", "t_intended": 100.0 * r + k,
                    "t_sent": 100.0 * r + k, "t_tokens": [100.0 * r + k + ttft[r, k] / 1e3 + 0.1 * t for t in range(4)],
                    "t_end": 100.0 * r + k + ttft[r, k] / 1e3 + 0.3, "output_tokens": 4,
                }
                for r in range(repeats) for k in range(12)
            ]  # fmt: skip
            arms.append(tables.with_latencies(pl.DataFrame(rows, schema=tables.RECORD_SCHEMA)))
    both = pl.concat(arms)
    return compare(*(both.filter(pl.col("arm") == arm) for arm in ("agg", "disagg")))


def test_three_repeats_say_what_they_could_have_shown_and_how_many_would() -> None:
    text = in_words(_measured(3, 10), "agg", "disagg")
    assert "No difference could be shown for any cell in any tested metric." in text
    assert "For the differences that were not shown: four of five runs with 3 repeats would show one of " in text
    assert "in mean E2E, depending on the cell." in text
    assert "Differences as large as those observed take at least" in text
    assert "(Benjamini-Hochberg at 5 %)" in text


def test_a_large_difference_is_told_by_three_repeats() -> None:
    text = in_words(_measured(3, 400), "agg", "disagg")
    assert "mean TTFT was higher in all 2 cells" in text
    assert "four of five runs" not in text


@pytest.mark.parametrize("repeats", [1, 2])
def test_one_or_two_repeats_are_no_word_on_another(repeats: int) -> None:
    text = in_words(_measured(repeats, 400), "agg", "disagg")
    assert (
        "**Fewer than three repeats**: the comparison of disagg with agg holds only for the requests of these" in text
    )
    assert "mean TTFT was higher in all 2 cells" in text
    assert "takes" not in text
    assert "Fewer than three" not in in_words(_measured(3, 400), "agg", "disagg")
