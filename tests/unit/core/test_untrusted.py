"""Reading a run's folder from someone else runs and sends nothing; the result is a report or a one-line error."""

import base64
import http.server
import json
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.conftest import Compose
from tests.unit.analysis.synthetic import Shape, make_run
from wp1 import track
from wp1.analysis import completeness
from wp1.analysis.base.run_tables import RunTables
from wp1.config import checks
from wp1.core import untrusted
from wp1.core.errors import ConfigError
from wp1.core.run_folder import read_config
from wp1.runner.reports import make_report

SMALL = Shape(lengths=(256,), rates=(0,), repeats=2, count=3)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return make_run(tmp_path / "sent", SMALL)


def change(path: Path, **to: Any) -> None:
    """Changes keys of a JSON or YAML file; the result is JSON, which is valid YAML."""
    content = yaml.safe_load(path.read_text())
    path.write_text(json.dumps(content | to))


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize(
    "part",
    [
        {"_target_": "wp1.collectors.device.np.load", "file": "x.npy", "allow_pickle": True},
        {"_target_": "wp1.collectors.device.np.save", "_args_": ["made.npy", [1, 2]]},
        {"_target_": "wp1.collectors.device.Path.touch"},
        {"_target_": "wp1.collectors.latency.LatencyStatsCollector", "_args_": [1]},
        {"_target_": "wp1.collectors.device.GPUStatsCollector", "hz": {"_target_": "os.mkdir", "path": "made"}},
        {"_target_": ["os.system"]},
        {},
    ],
)
def test_reading_a_folder_calls_nothing_that_it_names(
    run_dir: Path, part: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    payload = np.empty(1, dtype=object)
    payload[0] = Touch(tmp_path / "made")
    np.save(tmp_path / "x.npy", payload, allow_pickle=True)
    assert pickle.loads(pickle.dumps(Touch(tmp_path / "unpickled"))) is None
    config = read_config(run_dir)
    change(run_dir / "config.yaml", collectors={**config["collectors"], "x": part})
    page = make_report(run_dir, tmp_path / "reports").read_text()
    assert "> **Not recomputed**: x in `collectors`" in page
    assert "never runs code that a folder names" in page
    assert "## Latency" in page
    assert not (tmp_path / "made").exists()
    assert not (tmp_path / "made.npy").exists()


@pytest.mark.parametrize(
    ("key", "target"),
    [
        ("backend", "wp1.serving.vllm_backend.os.system"),
        ("backend", "wp1.serving.vllm_backend.VLLMBackend.kill"),
        ("transfer", "wp1.serving.transfer.nixl.socket.create_server"),
        ("scheduler", "wp1.serving.schedulers.aggregated.asyncio.run"),
        ("scheduler", "wp1.serving.transfer.auto.choose"),
    ],
)
def test_a_target_that_is_not_a_part_is_refused_before_it_is_called(config: Compose, key: str, target: str) -> None:
    with pytest.raises(ConfigError, match=rf"{key}\._target_={target} (is not a {key}: it has no|cannot be imported)"):
        checks.check(config(f"{key}._target_={target}"))


@pytest.mark.parametrize(
    "part", ["{_target_: wp1.collectors.device.np.load}", "{_target_: wp1.collectors.load.LoadStatsCollector, x: 1}"]
)
def test_what_is_no_collector_and_a_setting_that_it_has_not_are_refused(config: Compose, part: str) -> None:
    with pytest.raises(ConfigError, match=r"collectors\.x\._target_=\S+ cannot|unknown key collectors\.x\.x: "):
        checks.check(config(f"++collectors.x={part}"))


def test_interpolations_from_a_folder_are_not_resolved(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    config = read_config(run_dir)
    change(run_dir / "config.yaml", slo=config["slo"] | {"name": "${oc.env:SECRET}"}, seed=1)
    change(run_dir / "run_metadata.json", question="${oc.env:SECRET}")
    for name in ("cells.jsonl", "summary.json"):
        (run_dir / name).unlink(missing_ok=True)
    completeness.check(RunTables(run_dir))
    make_report(run_dir, tmp_path / "reports")
    assert all("hunter2" not in path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file())


@pytest.fixture
def server() -> Iterator[tuple[str, list[str | None]]]:
    """A server: its address, and the credentials of every request that it received."""
    got: list[str | None] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            got.append(self.headers.get("Authorization"))
            self.send_response(500)
            self.end_headers()

        do_POST = do_GET  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:
            pass

    found = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{found.server_port}", got
    found.shutdown()


@pytest.mark.parametrize("at_home", [True, False])
def test_credentials_go_to_no_server_that_a_folder_names(
    run_dir: Path, server: tuple[str, list[str | None]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, at_home: bool
) -> None:
    uri, got = server
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "alice")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2")
    root = str(tmp_path / "sent" if at_home else "/somewhere/else")
    change(run_dir / "config.yaml", root=root, tracking={"uri": uri, "timeout_s": 2, "enabled": True})
    with pytest.raises(ConfigError, match=r"names tracking\.uri=http://127.* name the store with --uri$"):
        track.track(run_dir, None)
    assert got == []
    # A server that the user has set or typed is the user's own.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert track.store_for(run_dir, read_config(run_dir)) == uri
    assert untrusted.is_own_store(uri, run_dir, root)
    with pytest.raises(Exception, match="not in MLflow"):
        track.track(run_dir, uri)
    assert got[0] == f"Basic {base64.b64encode(b'alice:hunter2').decode()}"


@pytest.mark.parametrize(
    ("uri", "own"),
    [("", True), ("sqlite:///mlflow.db", True), ("sqlite:////etc/x.db", False), ("sqlite:///../../x.db", False),
     ("sqlite:///mlflow.db?mode=x", False), ("postgresql://h/x", False), ("https://h", False)],
)  # fmt: skip
def test_a_store_in_the_folders_project_is_the_users_own(run_dir: Path, uri: str, own: bool) -> None:
    assert untrusted.is_own_store(uri, run_dir, str(run_dir.parents[1])) == own


def line(fn: Callable[[dict[str, Any]], Any], name: str = "records.jsonl") -> Callable[[Path], None]:
    """Changes the third line of a file."""

    def broken(run_dir: Path) -> None:
        lines = (run_dir / name).read_bytes().split(b"\n")
        found = fn(json.loads(lines[2]))
        lines[2] = found if isinstance(found, bytes) else json.dumps(found).encode()
        (run_dir / name).write_bytes(b"\n".join(lines))

    return broken


def metadata(**to: Any) -> Callable[[Path], None]:
    return lambda run_dir: change(run_dir / "run_metadata.json", **to)


def config_with(more: bytes) -> Callable[[Path], None]:
    def broken(run_dir: Path) -> None:
        (run_dir / "config.yaml").write_bytes((run_dir / "config.yaml").read_bytes() + more)

    return broken


def file_of(name: str, content: str) -> Callable[[Path], None]:
    return lambda run_dir: (run_dir / name).write_text(content)  # type: ignore[func-returns-value]


BOMB = b"\na: &a [x,x,x,x,x,x,x,x,x,x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (98 + n, 98 + n, b",".join([b"*%c" % (97 + n)] * 10)) for n in range(12)
)
BROKEN: list[tuple[Callable[[Path], None], str]] = [
    (metadata(labels=5), r"run_metadata\.json: labels is 5, and not a list"),
    (metadata(hardware=[]), r"hardware is \[\], and not an object"),
    (metadata(started="yesterday"), r"started is 'yesterday', and not a moment"),
    (metadata(seed=10**400), r"seed is a number with very many digits, and not a whole number"),
    (metadata(pools=[{"arm": "../x", "engines": []}]), r"pools\[0\]\.arm is '\.\./x', and not a name"),
    (file_of("run_metadata.json", '{"seed": ' + "9" * 5000 + "}"), r"run_metadata\.json cannot be read"),
    (file_of("run_metadata.json", '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}"), r"nested too deeply"),
    (file_of("run_metadata.json", '{"a": ' + "[" * 700 + "]" * 700 + "}"), r"run_metadata\.json cannot be read"),
    (config_with(b"\nx: " + b"[" * 5000 + b"]" * 5000), r"config\.yaml cannot be read"),
    (config_with(BOMB), r"config\.yaml cannot be read \(it has more than 100,000 values\)"),
    (config_with(b"\nx: !!python/object/apply:os.system [id]\n"), r"config\.yaml cannot be read"),
    (config_with(b"\nx: !!timestamp foo\n"), r"config\.yaml cannot be read"),
    (config_with(b"\x00"), r"config\.yaml cannot be read"),
    (config_with(b"\xff"), r"config\.yaml cannot be read"),
    (line(lambda row: row | {"t_intended": 1e300}), r"records\.jsonl:3 is not a valid request record"),
    (line(lambda row: row | {"t_sent": "x"}), r"records\.jsonl:3 is"),
    (line(lambda row: row | {"t_sent": float("nan")}), r"records\.jsonl:3 is"),
    (line(lambda row: row | {"repeat": [1]}), r"records\.jsonl:3 is"),
    (line(lambda row: row | {"arm": "../../x"}), r"records\.jsonl:3 is"),
    (line(lambda row: row | {"status": "![x](http://y)"}), r"records\.jsonl:3 is"),
    (line(lambda row: json.dumps(row).encode()[:-1] + b',"seed":' + b"9" * 5000 + b"}"), r"records\.jsonl:3 is"),
    (line(lambda row: b"\x00" * 50), r"records\.jsonl:3 is"),
    (line(lambda row: b"\xff\xfe"), r"records\.jsonl:3 is"),
    (line(lambda row: b"[" * 300_000), r"records\.jsonl:3 is"),
    (line(lambda row: row | {"bytes": 1e300}, "handoffs.jsonl"), r"handoffs\.jsonl:3 is not a valid handoff"),
    (file_of("cells.jsonl", '{"arm":"a","cell":1,"repeat":0,"requests":1,"seconds":1,"warmup_s":0}\n'), "jsonl:1 is"),
    (file_of("goodput.jsonl", '{"arm":"agg","prompt_len":"x","number":0}\n'), r"goodput\.jsonl:1 .*prompt_len is 'x'"),
    (file_of("examples.jsonl", '{"cell":1}\n'), r"examples\.jsonl:1"),
    (file_of("device.jsonl", '{"t":1,"device":"<img>"}\n'), r"device\.jsonl:1"),
]  # fmt: skip


@pytest.mark.parametrize(("broken", "said"), BROKEN)
def test_an_invalid_value_is_named_with_its_file_and_line(
    run_dir: Path, tmp_path: Path, broken: Callable[[Path], None], said: str
) -> None:
    broken(run_dir)
    with pytest.raises(ConfigError, match=said) as refused:
        make_report(run_dir, tmp_path / "reports")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "broken",
    [
        line(lambda row: row | {"t_tokens": None}),
        line(lambda row: row | {"t_tokens": [None, 1.0]}),
        line(lambda row: row | {"text": {"a": 1}}),
        line(lambda row: row | {"label": "9" * 5000}),
        line(lambda row: row | {"cell": "9" * 180 + "-conc1"}),
        line(lambda row: row | {"cell": "99-conc" + "9" * 180}),
        lambda run_dir: os.mkfifo(run_dir / "device.jsonl"),
    ],
)
def test_an_unusual_value_does_not_prevent_a_report(
    run_dir: Path, tmp_path: Path, broken: Callable[[Path], None]
) -> None:
    broken(run_dir)
    assert make_report(run_dir, tmp_path / "reports").is_file()
