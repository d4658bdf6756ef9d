"""Documented commands, one of each kind, and E4, on real engines. Commands with the same engine settings share engines.

Each command is read from README or docs/, and settings are added to shorten it.
"""

import json
from pathlib import Path

from omegaconf import DictConfig

from tests.documented import commands
from tests.engine.conftest import completed, configuration
from wp1.core.run_folder import read_json
from wp1.serving.engines import Engines, keys_of

# The settings of a documented command, and those that shorten it.
ONE_ENGINE = {
    "workload=random workload.prompt_len=2048": ["workload.num_requests=2", "workload.output_len=4"],
    "workload=gamma workload.request_rate=2": ["workload.num_requests=4", "workload.output_len=4"],
    "workload=poisson": ["workload.num_requests=2", "workload.output_len=4"],
    "workload.output_len=128": ["dataset.limit=1"],
    "experiment=e1 experiment.prompt_lens=[256,1024,4096]": [
        "experiment.prompt_lens=[64,128,256]", "experiment.repeats=1", "experiment.measure_peaks=false",
    ],
    "experiment=e2 workload=poisson experiment.request_rates=[0.5,1,2]": [
        "experiment.request_rates=[2]", "experiment.prompt_lens=[128]", "experiment.repeats=1",
        "experiment.measure_peaks=false", "experiment.goodput_budget_s=null", "experiment.arrivals_s=1",
        "workload.num_requests=2",
    ],
}  # fmt: skip
SHORT = ["experiment.repeats=1", "experiment.same_tokens=false", "tracking=none", "workload.max_warmup=1"]
TWO_ENGINES = {
    "experiment=e3": [
        "experiment.prompt_lens=[128]", "experiment.request_rates=[0]", "workload.num_requests=2",
        "workload.output_len=4",
    ],
}  # fmt: skip


def _composed(root: Path, settings: str, more: list[str]) -> DictConfig:
    (command,) = (one for one in commands() if one.program == "wp1" and " ".join(one.words) == settings)
    # Later settings win, as on the command line.
    overrides = {word.partition("=")[0]: word for word in [*SHORT, *command.words, *more]}
    return configuration(root, *overrides.values())


def _runs(engines: Engines, root: Path, which: dict[str, list[str]]) -> None:
    for settings, more in which.items():
        cfg = _composed(root, settings, more)
        # Keep the engines for the next command, which has the same engine settings.
        engines.next_key = keys_of(cfg)[0] if len(keys_of(cfg)) == 1 else None
        outcome = completed(cfg, engines)
        assert outcome.report is not None and outcome.summary is not None
        latency = outcome.summary["profiling"]["latency"]["overall"]
        assert latency["ok"] == latency["requests"] > 0, settings


def _engines_started(root: Path) -> int:
    return sum(len(read_json(path)["starts"]) for path in (root / "outputs").glob("run-*/run_metadata.json"))


def test_documented_commands_on_one_engine(engines: Engines, tmp_path: Path) -> None:
    _runs(engines, tmp_path, ONE_ENGINE)
    assert _engines_started(tmp_path) == 1


def test_e4_scores_and_times_the_same_requests(engines: Engines, tmp_path: Path) -> None:
    """Uses the engine of the commands before, and lets it end."""
    tasks = "[niah_single_1,multifieldqa_en,passkey,lcc,pg19_perplexity]"
    overrides = (f"dataset.tasks={tasks}", "dataset.prompt_lens=[512,1024]", "dataset.samples_per_task=1")
    cfg = configuration(tmp_path, "experiment=e4", "tracking=none", *overrides)
    engines.next_key = None
    outcome = completed(cfg, engines)
    folder, summary = outcome.run_dir, read_json(outcome.run_dir / "summary.json")
    quality = summary["quality"]["arms"]["agg"]
    scores = {task["task"]: task for task in quality["tasks"]}
    assert set(scores) == {"niah_single_1", "multifieldqa_en", "passkey", "lcc"}
    assert all(task["n"] == 2 and task["failed"] == 0 and task["ttft_ms"]["n"] == 2 for task in scores.values())
    # The bundled model finds a number in noise of these lengths.
    assert scores["niah_single_1"]["mean"] + scores["passkey"]["mean"] > 0
    # Real text is far from random over 49,152 tokens, and the model does not know it by heart.
    assert all(2 < row["mean"] < 500 for row in quality["perplexity"])
    lengths = [row["prompt_tokens"] for row in map(json.loads, (folder / "examples.jsonl").read_text().splitlines())]
    assert len(lengths) == 10
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    # The engine counts as many prompt tokens as were generated.
    assert sorted(r["prompt_tokens"] for r in records if not r["warmup"]) == sorted(lengths)
    assert read_json(folder / "run_metadata.json")["dataset"]["source"] == "builtin"
    page = next((folder.parent / "reports").glob("*.md")).read_text()
    assert "not the official sets" in page
    assert "Best and worst answers" in page


def test_documented_commands_on_two_engines(engines: Engines, tmp_path: Path) -> None:
    _runs(engines, tmp_path, TWO_ENGINES)
