"""Every command in README, docs, comments and `--help` works, as far as it can without an engine.

One of each kind is run with real engines in `tests/engine/test_commands.py`.
"""

import argparse
import json
import os
import re
import socket
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from tests.documented import GROUPS, REPO, Documented, commands, settings, yaml_files
from tests.double import TINY, DoubleBackend
from tests.unit.conftest import Command
from wp1 import main
from wp1.config import checks, schema
from wp1.core import command as command_line
from wp1.core.errors import ConfigError
from wp1.tracking.store import check_uri

ALL = commands()
RUNS = [one for one in ALL if one.program == "wp1" and not any(word.startswith("resume=") for word in one.words)]
OTHERS = [one for one in ALL if one.program.startswith("wp1.")]
TARGETS = [one for one in ALL if one.program == "make"]
# Options of a group that say nothing without others.
WITH = {
    "workload=trace": ["workload.trace_path=FILE"],
    "workload=scored": ["experiment=e4"],
    "rope=yarn": ["rope.factor=2"],
    "dataset=file": ["dataset.path=FILE.jsonl"],
    # Longer than what the bundled model is made for.
    "experiment=e1_gpu": ["model=llama31_8b_shape"],
    "experiment=e2_gpu": ["model=llama31_8b_shape"],
}


def _alone(option: str, *words: str) -> list[str]:
    """A choice from a group as a command, with what it needs beside it."""
    scored = option.startswith("dataset=") and option not in ("dataset=file", "dataset=questions")
    needed = [word for word in WITH.get(option, []) if word.split("=")[0] not in [one.split("=")[0] for one in words]]
    return [*(["experiment=e4"] if scored else []), option, *needed, *words]


def test_the_texts_are_read() -> None:
    """Were their form to change, nothing would be tested."""
    said = {str(one).split(": ", 1)[1] for one in ALL}
    assert {
        "wp1 -m scheduler=agg,disagg", "wp1 experiment=e5 model.max_len=131072", "make ui", "make packet DIR=",
        "wp1.score TASK FILE", "wp1 experiment=e1_gpu model=llama31_8b_shape", "launch/mlflow_server.sh",
        "wp1.peaks", "wp1", "wp1 workload.output_len=128", "wp1 resume=DIR",
    } <= said  # fmt: skip
    assert len(RUNS) > 25
    assert len(settings()) > 10


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Real files and folders for the names that the texts leave to the reader, and for files that they show."""
    trace, rows, model = tmp_path / "trace.jsonl", tmp_path / "rows.jsonl", tmp_path / "model"
    trace.write_text(json.dumps({"time_s": 0, "prompt_len": 8, "output_len": 4}) + "\n")
    rows.write_text(json.dumps({"question": "What is the capital of France?"}) + "\n")
    model.mkdir()
    (model / "config.json").write_text("{}\n")
    for name, text in yaml_files().items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return {
        "trace_path=FILE": f"trace_path={trace}",
        "dataset.path=": f"dataset.path={rows}",
        "model.path=FOLDER": f"model.path={model}",
        "--config-dir=my_conf": f"--config-dir={tmp_path / 'my_conf'}",
    }


def _compose(words: list[str], files: dict[str, str]) -> None:
    """All that `python -m wp1 WORDS` checks before it looks at models and engines, of each job of a sweep.

    Raises ConfigError, or Hydra's errors.
    """
    for name, real in files.items():
        words = [re.sub(rf"{re.escape(name)}.*", real, word) for word in words]
    main.check_options(words)
    main.find_packages(words)
    overrides = [schema.with_plus(word) for word in words if not word.startswith("-") and word not in ("job",)]
    # As Hydra's --config-dir does.
    overrides += [f"hydra.searchpath=[{word.partition('=')[2]}]" for word in words if word.startswith("--config-dir=")]
    if "-m" in words:
        jobs = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(overrides), None)[0]
        assert len(jobs) > 1
    else:
        jobs = [overrides]
    for job in jobs:
        with initialize_config_dir(str(main.CONF), version_base="1.3"):
            cfg = schema.resolve(compose("config", list(job)))
        checks.check(cfg)
        checks.check_overrides(cfg, list(job))
        if cfg.tracking.enabled:
            check_uri(cfg.tracking.uri, Path(cfg.root))


@pytest.mark.parametrize("one", RUNS, ids=str)
def test_a_run_is_composed_and_checked(one: Documented, files: dict[str, str]) -> None:
    # Said of these options as such.
    if one.words in (("--help",), ("-m",)):
        return
    _compose(list(one.words), files)


@pytest.mark.parametrize("one", settings(), ids=str)
def test_settings_in_running_text_are_composed_and_checked(one: Documented, files: dict[str, str]) -> None:
    _compose(_alone(*one.words), files)


OPTIONS = [
    f"{group}={path.stem}" for group in GROUPS for path in sorted((REPO / "conf" / group).glob("*.yaml"))
]  # fmt: skip


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_of_every_group_is_one_that_can_be_chosen(option: str, files: dict[str, str]) -> None:
    _compose(_alone(option), files)


def test_every_option_is_in_the_table_of_groups() -> None:
    page = (REPO / "docs" / "configuration.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+) \| ([^|]+) \|", page, re.MULTILINE)
    named = {group: set(re.findall(r"\w+", options)) for group, options in rows if group in GROUPS}
    # e0 to e6.
    named["experiment"] |= {f"e{n}" for n in range(7)}
    for option in OPTIONS:
        group, _, name = option.partition("=")
        assert name in named[group], option


def test_a_command_that_cannot_work_is_found(files: dict[str, str]) -> None:
    for words in (["workload=nonsense"], ["workload.prompt_ln=3"], ["workload=trace"], ["--nonsense"]):
        with pytest.raises(Exception, match=r"nonsense|prompt_ln|trace_path"):
            _compose(words, files)


class Parsed(BaseException):
    """A command line was understood."""


@pytest.mark.parametrize("one", OTHERS, ids=str)
def test_other_commands_are_parsed(one: Documented, monkeypatch: pytest.MonkeyPatch) -> None:
    module = one.program.removeprefix("wp1.")
    assert module in command_line.NAMES
    parse = argparse.ArgumentParser.parse_args

    def parse_only(*words: object, **settings: object) -> None:
        parse(*words, **settings)  # type: ignore[arg-type]
        raise Parsed

    # A bare name is said of a command as such, and has no words.
    if not one.words and module != "peaks":
        return
    monkeypatch.setattr(command_line.Parser, "parse_args", parse_only)
    monkeypatch.setattr(sys, "argv", [one.program, *one.words])
    with pytest.raises(Parsed):
        import_module(one.program).main()


@pytest.mark.parametrize("one", TARGETS, ids=str)
def test_targets_of_make_are_there_and_know_their_variables(one: Documented) -> None:
    makefile = (REPO / "Makefile").read_text(encoding="utf-8")
    target, *variables = one.words
    rule = re.search(rf"^{re.escape(target)}:.*\n((?:\t.*\n)*)", makefile, re.MULTILINE)
    assert rule is not None, target
    for word in variables:
        name = word.partition("=")[0]
        assert f"$({name}" in rule[1], f"make {target} has no {name}="


def test_a_port_that_is_in_use_is_one_line_that_names_another(tmp_path: Path) -> None:
    # Without its set-up, which tests are not to start.
    makefile = tmp_path / "Makefile"
    makefile.write_text((REPO / "Makefile").read_text(encoding="utf-8").replace("\nui: setup", "\nui:"))
    # As from a shell: below `make test` another make would tell its folder.
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = [
            subprocess.run(words, check=False, capture_output=True, text=True, cwd=REPO, timeout=60, env=environment)
            for words in (
                ["make", "-f", str(makefile), "ui", f"PORT={port}"],
                ["launch/mlflow_server.sh", str(tmp_path / "store"), "127.0.0.1", str(port)],
            )
        ]
    for one in done:
        assert one.returncode == 2
        assert one.stdout == ""
        (line,) = one.stderr.splitlines()
        assert f"port {port}" in line and "is in use" in line and "5001" in line
    assert "make ui PORT=5001" in done[0].stderr


def test_scripts_are_there() -> None:
    for one in ALL:
        if one.program.startswith("launch/"):
            assert (REPO / one.program).stat().st_mode & 0o111


def test_a_run_and_a_sweep_can_be_resumed_as_the_texts_say(
    command: Command, double: type[DoubleBackend], tmp_path: Path
) -> None:
    quiet = (f"root={tmp_path}", *TINY, "tracking=none")
    assert command(*quiet)[0] == 0
    assert command("-m", *quiet, "scheduler=agg,disagg")[0] == 0
    (run_dir,), (sweep_dir,) = (tmp_path / "outputs").glob("run-*"), (tmp_path / "multirun").iterdir()
    for folder, runs in ((run_dir, 1), (sweep_dir, 2)):
        code, said, _ = command(f"resume={folder}")
        assert code == 0, said
        assert said.count("is complete: nothing is left to measure") == runs


def test_refused_words_name_what_to_do(files: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"workload\.trace_path is empty: set workload\.trace_path=FILE"):
        _compose(["workload=trace"], files)
