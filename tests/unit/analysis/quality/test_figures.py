"""Scores of a run's folder: by task, length and depth, of two arms, and their page and plots."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from wp1.analysis.base import aggregates, metrics, tables
from wp1.analysis.base.run_tables import RunTables
from wp1.analysis.quality import figures as quality_figures
from wp1.analysis.quality import perplexity
from wp1.analysis.quality import plots as quality_plots
from wp1.analysis.quality import report as quality_report
from wp1.core.jsonl import RecordWriter
from wp1.core.records import RequestRecord

LENGTHS = (1024, 2048, 4096, 8192)
DEPTHS = (0.0, 50.0, 100.0)
WINDOW = 128


def _example(task: str, name: str, cell: str, **fields: Any) -> dict[str, Any]:
    known = {
        "cell": cell, "example": f"{task}/{name}", "task": task, "category": "c", "metric": "match_all",
        "answers": ["12345"], "all_classes": [], "length": None, "language": "en", "depth": None,
        "difficulty": None, "length_group": None, "label": f"{task} {name}", "prompt_tokens": 900,
        "tokens_before": 900,
    }  # fmt: skip
    return known | fields


def _record(arm: str, example: dict[str, Any], text: str, **fields: Any) -> RequestRecord:
    known: dict[str, Any] = {
        "status": "ok", "t_intended": 1.0, "t_sent": 1.0, "t_queued": 1.0, "t_scheduled": 1.1,
        "t_engine_first_token": 1.4, "t_engine_last_token": 1.6, "t_tokens": [1.5, 1.6], "t_end": 1.7,
        "prompt_tokens": example["prompt_tokens"], "output_tokens": 2, "text": text,
    }  # fmt: skip
    return RequestRecord(
        request_id=f"{arm}/{example['cell']}/r0/{example['example']}", arm=arm, cell=example["cell"], repeat=0,
        label=example["label"], warmup=False, seed=1, example=example["example"], **(known | fields),
    )  # fmt: skip


def scored_run(folder: Path) -> pl.DataFrame:
    """Two arms: yarn finds needles at every length but the last, unscaled those of the first two; the rest is alike."""
    examples, records = [], []
    for length in LENGTHS:
        cell = f"{length}-conc1"
        tokens = length - 128
        for depth in DEPTHS:
            for number in range(2):
                fields = {"length": length, "depth": depth, "prompt_tokens": tokens, "tokens_before": tokens}
                example = _example("ruler/niah_single_1", f"{length}-{number}-{depth:g}", cell, **fields)
                examples.append(example)
                records.append(_record("yarn", example, "it is 12345" if length < 8192 else "no"))
                records.append(_record("unscaled", example, "it is 12345" if length < 4096 else "no"))
        text = _example(
            "pg19/pg19_perplexity", f"{length}-0", cell, metric="perplexity", answers=[], length=length,
            prompt_tokens=length, tokens_before=length,
        )  # fmt: skip
        examples.append(text)
        windows = length // WINDOW
        for arm, nats in (("yarn", 2.0), ("unscaled", 2.5)):
            sums = [nats * (WINDOW - (n == 0)) for n in range(windows)]
            records.append(_record(arm, text, "x", nll_window=WINDOW, nll=sums))
    choice = _example("infinitebench/longbook_choice_eng", "1", "1024-conc1", metric="accuracy")
    choice["answers"] = ["Gath", "B"]
    examples.append(choice)
    records += [_record("yarn", choice, "B. Gath"), _record("unscaled", choice, "", status="error", error="died")]
    (folder / "examples.jsonl").write_text("".join(json.dumps(example) + "\n" for example in examples))
    with RecordWriter(folder / "records.jsonl") as writer:
        for record in records:
            writer.write(record)
    return tables.requests(folder / "records.jsonl")


SOURCE = {
    "name": "x", "source": "builtin", "from": "made here", "revision": None, "digest": "0" * 64, "bad_rows": 0,
    "examples": {"ruler/niah_single_1": 24},
}  # fmt: skip


@pytest.fixture
def rows(tmp_path: Path) -> pl.DataFrame:
    return quality_figures.scored(RunTables(tmp_path), scored_run(tmp_path))


@pytest.fixture
def found(rows: pl.DataFrame) -> dict[str, Any]:
    summary = quality_figures.summarise(rows, SOURCE)
    assert summary is not None
    return summary


def test_tasks_have_their_score_speed_and_number(found: dict[str, Any]) -> None:
    yarn = {task["task"]: task for task in found["arms"]["yarn"]["tasks"]}
    needle = yarn["niah_single_1"]
    assert (needle["n"], needle["mean"], needle["failed"]) == (24, 75.0, 0)
    assert needle["low"] < 75 < needle["high"]
    assert needle["ttft_ms"]["mean"] == pytest.approx(500)
    assert yarn["longbook_choice_eng"]["mean"] == 100.0
    assert found["arms"]["yarn"]["overall"]["mean"] == 87.5


def test_a_request_that_failed_scores_zero_and_is_counted(found: dict[str, Any]) -> None:
    tasks = {task["task"]: task for task in found["arms"]["unscaled"]["tasks"]}
    assert tasks["longbook_choice_eng"]["mean"] == 0.0
    assert tasks["longbook_choice_eng"]["failed"] == 1


def test_lengths_depths_and_how_far_it_carries(found: dict[str, Any]) -> None:
    yarn, unscaled = found["arms"]["yarn"], found["arms"]["unscaled"]
    assert [row["bucket"] for row in yarn["by_length"]] == list(LENGTHS)
    assert [row["mean"] for row in yarn["by_length"]] == [100.0, 100.0, 100.0, 0.0]
    assert {(row["length"], row["depth"]) for row in yarn["needles"]} == {(n, d) for n in LENGTHS for d in DEPTHS}
    assert (yarn["effective_length"]["absolute"], unscaled["effective_length"]["absolute"]) == (4096, 2048)
    assert yarn["effective_length"]["relative"] == 4096


def test_perplexity_is_of_the_tokens_at_their_positions(found: dict[str, Any]) -> None:
    ppl = found["arms"]["yarn"]["perplexity"]
    assert [row["to"] for row in ppl] == [512, *LENGTHS]
    assert all(row["mean"] == pytest.approx(math.exp(2.0), abs=1e-3) for row in ppl)
    # Four texts reach the first 512 tokens, whose first token has no likelihood; one reaches the last 4,096.
    assert (ppl[0]["n"], ppl[0]["texts"]) == (4 * 511, 4)
    assert (ppl[-1]["n"], ppl[-1]["texts"]) == (4096, 1)


def test_two_arms_have_their_perplexity_over_the_texts_of_both(rows: pl.DataFrame, tmp_path: Path) -> None:
    """unscaled was put no text beyond 2,048 tokens, and yarn's longer ones, harder to it, do not count against it."""
    long = (pl.col("metric") == "perplexity") & (pl.col("length") > 2048)
    harder = rows.with_columns(nll=pl.when(long).then(pl.col("nll").list.eval(pl.element() * 4)).otherwise("nll"))
    own = quality_figures.summarise(harder.filter(~(long & (pl.col("arm") == "unscaled"))), SOURCE)
    assert own is not None
    assert own["arms"]["yarn"]["perplexity"][0]["mean"] > 20
    both = own["differences"]["perplexity"]
    assert [(row["to"], row["texts"], row["n"]) for row in both] == [
        (512, 2, 2 * 511),
        (1024, 2, 1024),
        (2048, 1, 1024),
    ]
    for row in both:
        assert row["a"]["mean"] == pytest.approx(math.exp(2.0), abs=1e-3)
        assert row["b"]["mean"] == pytest.approx(math.exp(2.5), abs=1e-3)
        assert row["ratio"] == pytest.approx(math.exp(0.5), abs=1e-3)
        # Two texts or one: as few have no interval.
        assert (row["low"], row["a"]["high"], row["p"]) == (None, None, None)
    page = quality_report.section(own, harder)
    assert page.count("These rows cover the arm's own texts (those of yarn reach 8,192 tokens and") == 2
    assert "**Perplexity over the same texts** (up to 2 texts" in page
    # Drawn dashed, in the first arm's colour.
    captions = [caption for caption, _ in quality_plots.quality_plots(tmp_path, own, "")]
    assert any("Dashed: the first arm over the second arm's texts only." in caption for caption in captions)


def test_arms_of_the_same_texts_need_no_warning(rows: pl.DataFrame, found: dict[str, Any]) -> None:
    assert "own texts" not in quality_report.section(found, rows)


def test_a_request_for_perplexity_has_no_latency(tmp_path: Path) -> None:
    requests = scored_run(tmp_path).filter(pl.col("nll_window").is_not_null())
    assert requests.height == 8
    for metric in metrics.of_kind("request", "gaps"):
        assert requests[metric.key].null_count() == (8 if metric.for_users else 0), metric.key
    assert aggregates.attainment(requests, {"ttft_ms": 0.001}) == 1.0


def test_longbench_e_and_v2_are_scored_by_their_groups(tmp_path: Path) -> None:
    asked = [
        ("longbench/passage_count_e", "1", {"length_group": "0-4k"}, "12345"),
        ("longbench/passage_count_e", "2", {"length_group": "8k+"}, "1"),
        ("longbench/multifieldqa_en_e", "1", {"length_group": "0-4k"}, "1"),
        ("longbench/passage_count", "1", {}, "12345"),
        ("longbench_v2/longbench_v2", "1", {"difficulty": "hard", "length_group": "short"}, "(A)"),
    ]
    examples = [_example(task, name, "natural", **fields) for task, name, fields, _ in asked]
    (tmp_path / "examples.jsonl").write_text("".join(json.dumps(example) + "\n" for example in examples))
    with RecordWriter(tmp_path / "records.jsonl") as writer:
        for example, (*_, said) in zip(examples, asked, strict=True):
            writer.write(_record("agg", example, said))
    rows = quality_figures.scored(RunTables(tmp_path), tables.requests(tmp_path / "records.jsonl"))
    summary = quality_figures.summarise(rows, SOURCE)
    assert summary is not None
    groups = summary["arms"]["agg"]["groups"]
    assert {name: (score["n"], score["mean"]) for name, score in groups.items()} == {
        "longbench_v2, hard": (1, 0.0),
        "longbench_v2, short": (1, 0.0),
        "longbench, 0-4k": (2, 50.0),
        "longbench, 8k+": (1, 0.0),
    }
    assert "| longbench, 0-4k | mean of the tasks | 2 | 50.0 [" in quality_report.section(summary, rows)


def test_two_arms_differ_over_the_same_examples(found: dict[str, Any]) -> None:
    differences = found["differences"]
    assert differences["n"] == 25
    needle = next(row for row in differences["tasks"] if row["task"] == "niah_single_1")
    assert (needle["n"], needle["delta"]) == (24, -25.0)
    assert needle["low"] < -25 < needle["high"] < 0
    assert differences["identical"] == pytest.approx(18 / 25)


def test_the_page_says_what_was_found(rows: pl.DataFrame, found: dict[str, Any]) -> None:
    page = quality_report.section(found, rows)
    assert "built into wp1; 24 examples" in page
    # Of a run from before RULER's prompts were laid out as NVIDIA's.
    assert "NVIDIA" not in page
    assert "| ruler/niah_single_1 | match_all | 24 | 75.0 [" in page
    assert "100.0 [20.7, 100.0] few" in page  # one right answer
    assert "Effective length on RULER's tasks: **4,096 tokens**" in page
    assert "**unscaled − yarn**, over the same 25 examples" in page
    assert "Best and worst answers" in page
    assert quality_report.section(None, pl.DataFrame()) == ""


def test_the_page_begins_with_the_arms_side_by_side(rows: pl.DataFrame, found: dict[str, Any]) -> None:
    page = quality_report.section(found, rows)
    words, _, table = page.removeprefix("## Answers\n\n").partition("\n\n")
    assert words.startswith(
        "Over the 25 examples that both were asked, unscaled scores 28.0 points [6.5, 45.4] lower than yarn."
    )
    assert table.startswith(
        "| prompt tokens | yarn, score % [95 %] | unscaled, score % [95 %] | yarn, TTFT ms | unscaled, TTFT ms |"
    )
    one = {**found, "arms": {"yarn": found["arms"]["yarn"]}, "differences": None}
    assert quality_report.section(one, rows).startswith("## Answers\n\nOver ")


def test_the_same_question_asked_again_is_no_new_one(rows: pl.DataFrame) -> None:
    """Three greedy repeats, also under another load, have the same answers: nothing is known that one did not say."""
    again = [rows.with_columns(repeat=pl.lit(repeat, pl.Int64)) for repeat in range(3)]
    loaded = rows.with_columns(pl.col("cell").str.replace("conc1", "conc4"))
    one, many = (quality_figures.summarise(of, SOURCE) for of in (rows, pl.concat([*again, loaded])))
    assert one is not None and many is not None
    keys = ("n", "mean", "low", "high")
    for arm in ("yarn", "unscaled"):
        for part in ("tasks", "needles", "by_length", "perplexity"):
            a, b = (found["arms"][arm][part] for found in (one, many))
            assert [[row[key] for key in keys] for row in a] == [[row[key] for key in keys] for row in b]
        assert one["arms"][arm]["overall"] == many["arms"][arm]["overall"]
        assert one["arms"][arm]["benchmarks"] == many["arms"][arm]["benchmarks"]
    assert one["differences"]["overall"] == many["differences"]["overall"]
    assert one["differences"]["perplexity"] == many["differences"]["perplexity"]


def test_texts_are_what_perplexity_is_known_by() -> None:
    """Ten texts that differ, of windows that are alike: 95 % of intervals hold the truth, not half of them."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(100):
        nats = 2 + 0.3 * rng.standard_normal(10)
        texts = [
            {
                "metric": "perplexity", "nll_window": 256, "prompt_tokens": 1024, "cell": "c", "repeat": repeat,
                "example": f"t{n}", "nll": [255 * mean, 256 * mean, 256 * mean, 256 * mean],
            }
            for n, mean in enumerate(nats) for repeat in range(2)
        ]  # fmt: skip
        first, second = perplexity.by_position(pl.DataFrame(texts))
        assert (first["texts"], first["n"], second["n"]) == (10, 10 * 511, 10 * 512)
        held += second["low"] <= math.exp(2) <= second["high"]
    assert 88 <= held <= 100


def test_scores_that_agree_in_all_examples_are_no_certainty() -> None:
    """None of twenty differ, or two of them: by chance as well. Twelve of twenty do not."""
    for differing, told in ((0, False), (2, False), (12, True)):
        row = quality_figures._delta(np.array([100.0] * differing + [0.0] * (20 - differing)))
        assert row["low"] < row["high"]
        assert (row["low"] > 0) is told, differing
    tripled = quality_figures._delta(np.tile([100.0] * 2 + [0.0] * 18, 3), list(range(20)) * 3)
    assert tripled == quality_figures._delta(np.array([100.0] * 2 + [0.0] * 18))


def test_a_difference_that_may_be_none_is_not_called_one(found: dict[str, Any]) -> None:
    overall = {"n": 25, "delta": 2.0, "low": -3.0, "high": 8.0}
    said = quality_report._difference_in_words({"n": 25, "overall": overall}, "agg", "disagg")
    assert said == (
        "Over the 25 examples that both were asked, no difference between the scores of agg and disagg could be shown "
        "(+2.0 [-3.0, +8.0] points)."
    )


def test_every_plot_is_drawn(tmp_path: Path, found: dict[str, Any]) -> None:
    made = quality_plots.quality_plots(tmp_path, found, "")
    # Of several arms what differs by length comes first.
    assert [file.name for _, file in made] == ["score_by_length.png", "scores.png", "needles.png", "perplexity.png"]
    assert all(file.stat().st_size > 5000 for _, file in made)
    assert quality_plots.quality_plots(tmp_path, None, "") == []


def test_depths_that_were_drawn_are_put_together(rows: pl.DataFrame) -> None:
    spread = rows.filter(pl.col("depth").is_not_null()).with_row_index().with_columns(depth=pl.col("index") * 2.0)
    depths = {row["depth"] for row in quality_figures.needles(spread, quality_figures.reporting(spread, SOURCE))}
    assert depths <= {10.0, 30.0, 50.0, 70.0, 90.0}


def test_a_run_without_examples_has_no_scores(tmp_path: Path) -> None:
    with RecordWriter(tmp_path / "records.jsonl"):
        pass
    rows = quality_figures.scored(RunTables(tmp_path), tables.requests(tmp_path / "records.jsonl"))
    assert rows.is_empty()
    assert quality_figures.summarise(rows, {}) is None
