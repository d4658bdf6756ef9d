"""The configuration hash: the same everywhere, and changed by whatever changes a result."""

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.conftest import Compose
from wp1.core.identity import RUN_ID, config_hash, new_run_id, settings_of


def test_run_ids_are_unique_and_sort_by_time() -> None:
    ids = [new_run_id() for _ in range(50)]
    assert len(set(ids)) == 50
    assert all(RUN_ID.fullmatch(run_id) for run_id in ids)
    assert re.fullmatch(r"run-\d{8}T\d{6}Z-[0-9a-f]{8}", ids[0])


def test_the_hash_does_not_depend_on_the_order_of_keys(config: Compose) -> None:
    cfg = config()
    turned = OmegaConf.create(dict(reversed(list(OmegaConf.to_container(cfg).items()))))  # type: ignore[union-attr]
    assert config_hash(turned) == config_hash(cfg)


@pytest.mark.parametrize(
    "override",
    [
        "root=/elsewhere",
        "+tags.note=hello",
        "tracking=none",
        "tracking.uri=http://other",
        "backend.startup_timeout_s=5",
    ],
)
def test_places_and_names_are_not_in_the_hash(config: Compose, override: str) -> None:
    assert config_hash(config(override)) == config_hash(config())


def test_a_path_counts_by_what_it_holds(config: Compose, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    here, there = config(f"model.path={tmp_path}/m"), config(f"model.path={tmp_path}")
    assert config_hash(here, {"model.path": "a"}) == config_hash(there, {"model.path": "a"})
    assert config_hash(here, {"model.path": "a"}) != config_hash(here, {"model.path": "b"})


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "model=qwen25_7b",
        "model.max_len=4096",
        "model.dtype=float32",
        "model.revision=abc",
        "rope=none",
        "rope=yarn",
        "scheduler.replicas=2",
        "scheduler.routing=least_loaded",
        "scheduler.tensor_parallel=2",
        "scheduler.devices=[1]",
        "backend.engine.max_num_seqs=8",
        "+backend.engine.block_size=32",
        "backend.kv_cache_gib=2",
        "dataset.limit=2",
        "workload=random",
        "workload.output_len=65",
        "workload.concurrency=2",
        "workload.request_rate=1",
        "workload.arrivals=constant",
        "workload.temperature=0.3",
        "workload.top_p=0.8",
        "workload.num_warmup=0",
        "workload.timeout_s=1",
        "experiment.repeats=3",
        "slo=interactive",
    ],
)
def test_whatever_changes_a_result_changes_the_hash(config: Compose, override: str) -> None:
    assert config_hash(config(override)) != config_hash(config())


def test_the_hash_is_stable_between_machines(config: Compose) -> None:
    """A known value: a change here means that hashes of runs published before no longer match."""
    cfg = OmegaConf.create({"seed": 1, "model": {"name": "m", "path": "/here"}, "root": "/x", "tags": {}})
    assert config_hash(cfg) == "47f4b3effca0cf3b5e02f1ac048da8b26a01a092bb0fc10ce439a5332fcf68b1"


def test_the_hash_holds_no_path_of_a_class(config: Compose) -> None:
    """The same scheduler in another module is the same; another scheduler is not."""
    cfg = config()
    moved, other = cfg.copy(), cfg.copy()
    moved.scheduler._target_ = "elsewhere.AggregatedScheduler"
    other.scheduler._target_ = "wp1.serving.schedulers.aggregated.OtherScheduler"
    assert config_hash(moved) == config_hash(cfg)
    assert config_hash(other) != config_hash(cfg)
    assert config_hash(config("scheduler=disagg")) != config_hash(cfg)


def test_what_a_scheduler_is_called_is_read_of_older_runs_too() -> None:
    older = {"scheduler": {"_target_": "wp1.scheduler.AggregatedScheduler", "mode": "agg", "prefill": None}}
    newer = {"scheduler": {"_target_": "wp1.serving.aggregated.AggregatedScheduler", "name": "agg"}}
    assert settings_of(older) == settings_of(newer)
    arms = {"arms": {"a": {"_target_": "x.Y", "mode": "agg"}}}
    assert settings_of(arms) == {"arms.a._target_": "Y", "arms.a.name": "agg"}
