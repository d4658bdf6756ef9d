"""A prompt source from outside the tree: one class, named by `workload.prompts`, used in a whole run."""

import sys
from pathlib import Path

import pytest

from tests.double import TINY
from tests.records import read_records
from tests.unit.conftest import Command
from wp1.core import untrusted
from wp1.core.errors import ConfigError
from wp1.runner.reports import make_report

MODULE = '''
from dataclasses import replace

from wp1.workload.prompts import PromptSource, Requests, request_of


class Counting(PromptSource):
    """Prompt n counts up to n."""

    repeated = True

    def prepare(self, cfg, data, tokens, cells, tell, given):
        return replace(data, own=[data.encode(" ".join(map(str, range(n + 1)))) for n in range(4)])

    def requests(self, cfg, cell, repeat, data):
        return Requests(
            cell.num_requests,
            lambda n: request_of(cfg, cell, repeat, f"{n}", [], f"up to {n}", n),
            lambda n: data.own[n % len(data.own)],
        )
'''


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command that asks it of the engine double."""
    (tmp_path / "python").mkdir()
    (tmp_path / "python" / "prompts_of_a_test.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path / "python")
    monkeypatch.delitem(sys.modules, "prompts_of_a_test", raising=False)
    return [*TINY, f"root={tmp_path}", "tracking.enabled=false", "workload.num_requests=3"]


def test_it_is_asked_and_reported(
    words: list[str], command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, said, _ = command(*words, "workload.prompts=prompts_of_a_test.Counting")
    assert code == 0, said
    (run_dir,) = (tmp_path / "outputs").glob("run-*")
    records = [record for record in read_records(run_dir / "records.jsonl") if not record.warmup]
    assert {record.label for record in records} == {"up to 0", "up to 1", "up to 2"}
    # With random weights, token ids are bytes.
    assert {record.prompt_tokens for record in records} == {1, 3, 5}
    monkeypatch.delitem(sys.modules, "prompts_of_a_test")
    (tmp_path / "python" / "prompts_of_a_test.py").write_text("raise RuntimeError('imported')")
    assert make_report(run_dir, tmp_path / "again").is_file()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("judged", "workload.prompts=judged is not known: set workload.prompts to dataset or random or scored"),
        ("no_such.Thing", "workload.prompts=no_such.Thing cannot be imported (ModuleNotFoundError"),
        ("prompts_of_a_test.replace", "is not a class derived from wp1.workload.prompts.PromptSource"),
    ],
)
def test_what_is_no_source_is_one_line(words: list[str], command: Command, name: str, said: str) -> None:
    code, told, _ = command(*words, f"workload.prompts={name}")
    assert code == 2
    assert said in told
    assert len(told.strip().splitlines()) == 1


def test_a_folder_s_command_that_names_it_has_to_be_typed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"workload\.prompts=mine\.Counting, which names code to run"):
        untrusted.check(tmp_path, ["workload.prompts=mine.Counting"], [], str(tmp_path))
