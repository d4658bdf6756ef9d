"""Documented commands, one of each kind, on real engines; commands with the same engine settings share them.

Each is read from README or docs/ and made short by added settings. E0, E2, E4, E6 and transfers have their own tests.
"""

from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from tests.documented import commands
from wp1.config import checks, schema
from wp1.core.identity import new_run_id
from wp1.core.run_folder import read_json
from wp1.main import CONF
from wp1.runner.console import Screen
from wp1.runner.run import run
from wp1.serving.engines import Engines, keys_of

# What begins a command of the texts, and what makes it short.
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


def _composed(root: Path, said: str, more: list[str]) -> DictConfig:
    (found,) = (one for one in commands() if one.program == "wp1" and " ".join(one.words) == said)
    # Later words win, as on the command line.
    words = {word.partition("=")[0]: word for word in [*SHORT, *found.words, *more, f"root={root}"]}
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = schema.resolve(compose("config", list(words.values())))
    checks.check(cfg)
    return cfg


def _runs(root: Path, which: dict[str, list[str]]) -> None:
    with Engines() as engines, Screen() as screen:
        for said, more in which.items():
            cfg = _composed(root, said, more)
            # Kept for the next, which asks for the same.
            engines.next_key = keys_of(cfg)[0] if len(keys_of(cfg)) == 1 else None
            run_id = new_run_id()
            outcome = run(cfg, root / "outputs" / run_id, run_id, screen, None, engines)
            assert outcome.status == "completed", f"{said}: {outcome.reason}"
            assert outcome.report is not None and outcome.summary is not None
            latency = outcome.summary["profiling"]["latency"]["overall"]
            assert latency["ok"] == latency["requests"] > 0, said


def test_commands_of_the_texts_on_one_engine(tmp_path: Path) -> None:
    _runs(tmp_path, ONE_ENGINE)
    runs = sorted((tmp_path / "outputs").glob("run-*/run_metadata.json"), key=lambda path: path.stat().st_mtime)
    assert sum(len(read_json(path)["starts"]) for path in runs) == 1


def test_commands_of_the_texts_on_two_engines(tmp_path: Path) -> None:
    _runs(tmp_path, TWO_ENGINES)
