"""The command line from the user's view: quick answers, one clear line for bad input, and exit codes."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import REPO
from tests.double import TINY
from tests.unit.conftest import Command


def _wp1(*arguments: str, root: Path | None = None) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "wp1", *arguments]
    if root is not None and not any(word.startswith("root=") for word in arguments):
        words.append(f"root={root}")
    return subprocess.run(words, check=False, capture_output=True, text=True, cwd=REPO, timeout=120)


@pytest.mark.parametrize("flag", [["--help"], ["--cfg", "job"], ["--info", "defaults-tree"]])
def test_questions_about_the_configuration_are_answered(flag: list[str]) -> None:
    done = _wp1(*flag)
    assert done.returncode == 0
    assert "smollm2_135m" in done.stdout


def test_composing_imports_nothing_heavy() -> None:
    """Heavy modules are not imported, so that `--cfg job` takes under two seconds; `make bench` measures the time."""
    probe = (
        "import sys; sys.argv = ['wp1', '--cfg', 'job']\n"
        "from wp1.main import main\n"
        "try:\n"
        "    main()\n"
        "except SystemExit:\n"
        "    pass\n"
        "heavy = {'torch', 'vllm', 'mlflow', 'transformers', 'datasets', 'polars', 'matplotlib', 'numpy'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", probe], check=True, capture_output=True, text=True, cwd=REPO)
    assert "HEAVY []" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model.max_ln=3"], "unknown key model.max_ln: did you mean model.max_len"),
        (["+nonsense=3"], "unknown key nonsense"),
        (["scheduler=fastest"], "scheduler=fastest does not exist: scheduler can be agg"),
        (["seed=abc"], "seed"),
        (["seed=[1"], "[1"),
        (["model=null"], "model"),
        (["root=/proc/x"], "/proc/x"),
        (["model.architecture.hidden_size=5"], "hidden_size"),
        (["workload.request_rate=-1"], "workload.request_rate"),
        (["dataset=file", "dataset.path=/no/such"], "dataset.path"),
        (["--foo"], "unknown option --foo: see python -m wp1 --hydra-help"),
        (["--seed=1"], "unknown option --seed=1: write settings without dashes, as in seed=1"),
        (["-m", "-x"], "unknown option -x"),
        (["--cfg", "all_of_it"], "argument --cfg/-c: invalid choice: 'all_of_it'"),
        (["--config"], "ambiguous option: --config could match --config-path"),
        (["seed=1", "--cfg", "job", "slo=none"], "slo=none: put all key=value settings together"),
        (["e3"], "e3 is not a setting: write settings as key=value"),
        (["=3"], "=3 has no key: write settings as key=value"),
        (["+=3"], "+=3 has no key"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    command: Command, arguments: list[str], message: str, tmp_path: Path
) -> None:
    root = [] if any(word.startswith("root=") for word in arguments) else [f"root={tmp_path}"]
    code, said, out = command(*arguments, *root)
    assert (code, out) == (2, "")
    (line,) = said.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert list((tmp_path / "outputs").glob("run-*")) == []


def test_bad_input_ends_the_process_with_one_line_and_exit_code_2(tmp_path: Path) -> None:
    done = _wp1("model.max_ln=3", root=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: unknown key model\.max_ln: did you mean model\.max_len.*\n", done.stderr)


def test_every_bad_job_of_a_sweep_is_told(tmp_path: Path) -> None:
    done = _wp1("-m", "workload.request_rate=-1,-2", root=tmp_path)
    assert done.returncode == 2
    assert "job 0: workload.request_rate=-1.0" in done.stderr
    assert "job 1: workload.request_rate=-2.0" in done.stderr


@pytest.mark.parametrize("module", ["wp1.report", "wp1.track"])
def test_a_folder_that_is_no_run_is_one_line(module: str, tmp_path: Path) -> None:
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", module, str(tmp_path)], check=False, capture_output=True, text=True, cwd=REPO
    )
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert str(tmp_path) in done.stderr
    assert time.monotonic() - start < 30


def test_same_tokens_is_left_aside_with_one_word(command: Command, tmp_path: Path) -> None:
    """E0 asks for it, and every command without experiment= is E0."""
    few = ("workload.num_requests=2", "workload.request_rate=50", "tracking=none", f"root={tmp_path}")
    code, said, _ = command(*TINY, "workload=poisson", *few, "workload.prompt_len=32")
    assert code == 0, said
    assert "experiment.same_tokens is turned off: random prompts differ in every repeat\n" in said
    assert "same seed, same tokens" not in said
    code, said, _ = command(*TINY, "workload=poisson", *few, "experiment.same_tokens=true")
    assert code == 2
    assert "experiment.same_tokens=true compares repeats of a prompt, and random prompts differ" in said
