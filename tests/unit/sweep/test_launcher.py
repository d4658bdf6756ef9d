"""A sweep's jobs share engines: which job starts them, which takes them over, and that they are stopped."""

import itertools
import os
import pickle
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import Compose
from tests.double import DoubleBackend
from tests.unit.conftest import Sweep, Swept
from wp1.core.paths import CONF
from wp1.core.run_folder import read_json
from wp1.machine import hardware
from wp1.serving.engines import key_of, keys_of
from wp1.sweep.launcher import together

QUIET = ("tracking=none", "tracking.uri=", "experiment.repeats=1", "experiment.same_tokens=false")


def metadata_of(done: Swept) -> list[dict[str, Any]]:
    """By job."""
    return [read_json(path) for path in sorted(done.folder.glob("*/run_metadata.json"))]


def test_six_jobs_over_two_engine_settings_start_engines_twice(sweep: Sweep, double: type[DoubleBackend]) -> None:
    done = sweep(*QUIET, "workload.output_len=2,3,4", "scheduler=agg,disagg")
    assert done.code == 0, done.said
    assert sorted(double.started) == ["agg-0", "decode-0", "prefill-0"]
    assert sorted(double.stopped) == sorted(double.started)
    jobs = metadata_of(done)
    # Numbers and overrides are the user's; only the order is ours.
    assert done.table.select("workload.output_len", "scheduler").rows() == [
        (length, scheduler) for length in (2, 3, 4) for scheduler in ("agg", "disagg")
    ]
    assert [len(job["starts"]) for job in jobs] == [1, 1, 0, 0, 0, 0]
    taken = [[entry["from"] for entry in job["taken_over"]] for job in jobs]
    assert taken == [[], []] + [[jobs[0]["run_id"]], [jobs[1]["run_id"]]] * 2
    assert {job["status"] for job in jobs} == {"completed"}
    assert "in the order 0, 2, 4, 1, 3, 5" in done.out
    report = (done.folder.parents[1] / "outputs" / "reports" / f"{jobs[2]['run_id']}.md").read_text()
    assert f"up since `{jobs[0]['run_id']}`" in report


def test_a_sweep_s_folder_is_its_own_and_the_same_for_all_its_jobs() -> None:
    """Ids stay unique in the same second, and in other processes that a launcher sends the configuration to."""
    names = []
    for _ in range(2):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            master = (
                GlobalHydra.instance()
                .config_loader()
                .load_configuration("config", ["seed=1,2"], run_mode=RunMode.MULTIRUN)
            )
            sent = pickle.loads(pickle.dumps(master))
            own = Path(master.hydra.sweep.dir)
            assert Path(pickle.loads(pickle.dumps(master)).hydra.sweep.dir) == own
            assert re.fullmatch(r"\d{8}T\d{6}Z-[0-9a-f]{8}", own.name)
            assert own.parent.name == "multirun"
            for seed in (1, 2):
                job = GlobalHydra.instance().config_loader().load_sweep_config(master, [f"seed={seed}"])
                assert Path(job.hydra.sweep.dir) == own
            # Nothing had asked for it when this copy was made: the callback does, before any job is sent away.
            assert Path(sent.hydra.sweep.dir) != own
            names.append(own.name)
    assert names[0] != names[1]


def test_what_is_handed_over_goes_to_the_run_that_sent_it(sweep: Sweep) -> None:
    done = sweep(*QUIET, "workload.output_len=2,3", "scheduler=disagg")
    rows = [(done.folder / str(n) / "handoffs.jsonl").read_text().splitlines() for n in (0, 1)]
    # Six questions, and what each engine is warmed up with.
    assert len(rows[0]) == len(rows[1]) == 8


def test_engines_that_died_are_not_handed_on(sweep: Sweep, double: type[DoubleBackend]) -> None:
    """An engine that served seven requests in the first job dies in the second, and the third starts its own."""
    double.dies_at = 10
    done = sweep(*QUIET, "workload.output_len=2,3,4")
    assert done.code == 1
    assert [job["status"] for job in metadata_of(done)] == ["completed", "failed", "completed"]
    assert [len(job["starts"]) for job in metadata_of(done)] == [1, 0, 1]
    assert double.started == double.stopped == ["agg-0", "agg-0"]


def test_an_engine_that_dies_between_jobs_is_replaced(
    sweep: Sweep, double: type[DoubleBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    from wp1.runner import run as run_module

    finish = run_module._finish

    def and_die(*words: Any) -> Any:
        for engine in double.engines.values():
            engine.kill()
        return finish(*words)

    monkeypatch.setattr(run_module, "_finish", and_die)
    done = sweep(*QUIET, "workload.output_len=2,3")
    assert [job["status"] for job in metadata_of(done)] == ["completed", "completed"]
    assert double.started == double.stopped == ["agg-0", "agg-0"]


def test_a_refused_job_does_not_cost_the_others_their_engines(sweep: Sweep, double: type[DoubleBackend]) -> None:
    done = sweep(*QUIET, "workload.concurrency=1,0,2")
    assert done.code == 2
    assert done.table["status"].to_list() == ["completed", "refused", "completed"]
    assert double.started == double.stopped == ["agg-0"]


def test_a_signal_ends_engines_that_were_kept(
    sweep: Sweep, double: type[DoubleBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the first job's report is written, its engines are up for the second."""
    from wp1.runner import run as run_module

    def stopped(*_: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(run_module, "summarise", stopped)
    done = sweep(*QUIET, "workload.output_len=2,3")
    assert done.code == 130
    assert double.started == double.stopped == ["agg-0"]


def test_memory_that_kept_engines_use_is_not_missing(
    sweep: Sweep, double: type[DoubleBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        hardware, "available_memory_bytes", lambda: 24 << 30 if len(double.started) == len(double.stopped) else 1000
    )
    done = sweep(*QUIET, "workload.output_len=2,3", "seed=1,2")
    assert done.code == 0, done.said
    assert len(double.started) == 2


def test_the_prefix_cache_of_one_job_serves_no_other(
    sweep: Sweep, double: type[DoubleBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking whether all KV is free empties vLLM's prefix cache; engines that hold any are replaced."""

    async def held(self: DoubleBackend) -> bool:
        return False

    monkeypatch.setattr(double, "kv_free", held)
    monkeypatch.setattr("wp1.runner.measure.KV_FREE_WITHIN_S", 0.1)
    sweep(*QUIET, "workload.output_len=2,3")
    assert double.started == double.stopped == ["agg-0", "agg-0"]


def test_engines_are_alike_where_all_that_reaches_them_is(config: Compose) -> None:
    def key(*overrides: str) -> str:
        cfg = config(*overrides)
        return key_of(cfg, cfg.scheduler)

    alike = key()
    for override in ("workload.output_len=3", "slo=interactive", "experiment.repeats=3", "++tags.a=b",
                     "transfer=nixl_pull", "backend.startup_timeout_s=5", "workload.timeout_s=5"):  # fmt: skip
        assert key(override) == alike, override
    for override in ("seed=1", "model.max_len=4096", "rope=none", "scheduler.replicas=2", "scheduler=disagg",
                     "backend.engine.max_num_seqs=3", "scheduler.routing=least_loaded"):  # fmt: skip
        assert key(override) != alike, override
    assert key("scheduler=disagg") != key("scheduler=disagg", "transfer=nixl_pull")
    assert key("scheduler=disagg") != key("scheduler=disagg", "workload.timeout_s=5")
    assert len(set(keys_of(config("experiment=e3")))) == 2


@given(st.lists(st.sampled_from([("a",), ("b",), ("a", "b"), ()])))
def test_jobs_that_ask_for_the_same_follow_each_other(asked: list[tuple[str, ...]]) -> None:
    order = together(asked)
    assert sorted(order) == list(range(len(asked)))
    kinds = [asked[n] for n in order]
    changes = sum(a != b for a, b in itertools.pairwise(kinds))
    assert changes == max(0, len(set(asked)) - 1)
    for kind in set(asked):
        of_kind = [n for n in order if asked[n] == kind]
        assert of_kind == sorted(of_kind)
