"""What a run's folder or a configuration from someone else must not do, and who can reach a run's sockets."""

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Compose
from tests.double import TINY
from wp1.collectors.making import collectors_of
from wp1.config import checks
from wp1.core.errors import ConfigError
from wp1.core.run_folder import read_json
from wp1.runner.console import Screen
from wp1.runner.reports import make_report
from wp1.runner.run import run
from wp1.serving.guard import ProcessGuard
from wp1.track import track

RUN_ID = "run-20260101T000000Z-00000000"


@pytest.mark.parametrize(("key", "name"), [("run_id", "../../../escaped"), ("experiment", "../x"), ("run_id", "/abs")])
def test_a_foreign_folder_writes_nowhere_else(
    config: Compose, double: Any, tmp_path: Path, key: str, name: str
) -> None:
    run_dir = tmp_path / "outputs" / RUN_ID
    with Screen() as screen:
        run(config(*TINY), run_dir, RUN_ID, screen)
    path = run_dir / "run_metadata.json"
    path.write_text(json.dumps(read_json(path) | {key: name}))
    before = sorted(tmp_path.rglob("*"))
    for make in (lambda: make_report(run_dir, tmp_path / "a" / "reports"), lambda: track(run_dir, None)):
        with pytest.raises(ConfigError, match=rf"has an invalid name, {key}='.*': "):
            make()
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "part",
    [
        {"_target_": "os.mkdir"},
        {"_target_": "wp1.core.run_folder.write_json"},
        {"_target_": "wp1.collectors.device.GPUStatsCollector", "hz": {"_target_": "os.mkdir", "path": "made"}},
    ],
)
def test_a_foreign_configuration_calls_nothing_but_collectors(
    part: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"collectors\.x"):
        collectors_of({"collectors": {"x": part}})
    assert list(tmp_path.iterdir()) == []


def test_settings_of_engines_call_nothing(
    config: Compose, double: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made = "{_target_: os.mkdir, path: made}"
    cfg = config(*TINY, "scheduler=disagg", "transfer=nixl_push", f"++transfer.extra.x={made}")
    checks.check(cfg)
    with Screen() as screen:
        run(cfg, tmp_path / "outputs" / RUN_ID, RUN_ID, screen)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("group", ["dataset", "model", "experiment", "slo", "transfer"])
@pytest.mark.parametrize("name", ["../x", "/x", "..", "a/b"])
def test_names_that_would_lead_elsewhere_are_refused(config: Compose, group: str, name: str) -> None:
    with pytest.raises(ConfigError, match=rf"{group}\.name=.* is not a valid name"):
        checks.check(config(f"{group}.name={name}"))


def test_sockets_and_temporary_files_lie_where_only_their_owner_enters() -> None:
    with ProcessGuard():
        for variable in ("TMPDIR", "VLLM_RPC_BASE_PATH"):
            found = Path(os.environ[variable]).stat()
            assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o700, os.getuid())


def test_compiled_code_is_kept_where_nobody_else_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setenv("WP1_CACHE", str(tmp_path))
    with ProcessGuard():
        assert Path(os.environ["TORCHINDUCTOR_CACHE_DIR"]) == tmp_path / "torchinductor"
    assert stat.S_IMODE((tmp_path / "torchinductor").stat().st_mode) == 0o700
    monkeypatch.setenv("WP1_CACHE", "/proc/nowhere")
    with ProcessGuard():
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"].startswith(os.environ["TMPDIR"])
