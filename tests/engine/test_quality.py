"""E4 and E6 end to end on real vLLM and the bundled model, as a user starts them, with short prompts."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import Start


def _finished(start: Start, *overrides: str) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    run = start("tracking=none", "dataset.samples_per_task=1", *overrides)
    code, said = run.finish()
    assert code == 0, said
    summary, metadata = (json.loads((run.run_dir / name).read_text()) for name in ("summary.json", "run_metadata.json"))
    return run.run_dir, summary, metadata


def test_e4_scores_and_times_the_same_requests(start: Start) -> None:
    tasks = "[niah_single_1,multifieldqa_en,passkey,lcc,pg19_perplexity]"
    folder, summary, metadata = _finished(
        start, "experiment=e4", f"dataset.tasks={tasks}", "dataset.prompt_lens=[512,1024]"
    )
    found = summary["quality"]["arms"]["agg"]
    scores = {task["task"]: task for task in found["tasks"]}
    assert set(scores) == {"niah_single_1", "multifieldqa_en", "passkey", "lcc"}
    assert all(task["n"] == 2 and task["failed"] == 0 and task["ttft_ms"]["n"] == 2 for task in scores.values())
    # The bundled model finds a number in noise of these lengths.
    assert scores["niah_single_1"]["mean"] + scores["passkey"]["mean"] > 0
    # A text of real words is far from random over 49,152 tokens, and far from known by heart.
    assert all(2 < row["mean"] < 500 for row in found["perplexity"])
    lengths = [row["prompt_tokens"] for row in map(json.loads, (folder / "examples.jsonl").read_text().splitlines())]
    assert len(lengths) == 10
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    # The engine counts what was made.
    assert sorted(r["prompt_tokens"] for r in records if not r["warmup"]) == sorted(lengths)
    assert metadata["dataset"]["source"] == "builtin"
    page = next((folder.parent / "reports").glob("*.md")).read_text()
    assert "not the official sets" in page
    assert "Best and worst answers" in page


def test_e6_compares_yarn_with_the_unscaled_control(start: Start) -> None:
    folder, summary, metadata = _finished(
        start,
        "experiment=e6",
        "model.max_len=16384",
        "dataset.prompt_lens=[512,1024]",
        "dataset.tasks=[niah_single_1,pg19_perplexity]",
        "dataset.depths=[0,100]",
        "workload.num_warmup=1",
        "workload.max_warmup=1",
    )
    arms = summary["quality"]["arms"]
    assert set(arms) == {"yarn", "unscaled"}
    for of in arms.values():
        assert {(row["length"], row["depth"]) for row in of["needles"]} == {
            (512, 0.0), (512, 100.0), (1024, 0.0), (1024, 100.0),
        }  # fmt: skip
        assert [row["to"] for row in of["perplexity"]] == [512, 1024]
    assert arms["unscaled"]["overall"]["mean"] > 0
    ropes = metadata["ropes"]
    assert (ropes["yarn"]["type"], ropes["yarn"]["factor"], ropes["yarn"]["max_len"]) == ("yarn", 2.0, 16384)
    assert (ropes["unscaled"]["type"], ropes["unscaled"]["max_len"]) == ("default", 8192)
    # What the engines themselves say.
    in_effect = {pool["arm"]: pool["engines"][0]["settings"]["rope"] for pool in metadata["pools"]}
    assert (in_effect["yarn"]["rope_type"], in_effect["yarn"]["factor"]) == ("yarn", 2.0)
    assert in_effect["unscaled"].get("rope_type", "default") == "default"
    assert summary["quality"]["differences"]["n"] == 4
    page = next((folder.parent / "reports").glob("*.md"))
    assert (page.with_suffix("") / "needles.png").is_file()


@pytest.mark.parametrize("experiment", ["e4", "e6"])
def test_random_weights_are_refused_before_an_engine_starts(start: Start, experiment: str) -> None:
    run = start(f"experiment={experiment}", "model=llama31_8b_shape")
    code, said = run.finish()
    assert code == 2
    assert "those of random weights mean nothing" in said
