"""A prompt source from outside the tree: one class, named by `workload.prompts`, used in a whole run."""

import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.double import TINY
from tests.records import read_records
from tests.unit.conftest import Command
from wp1.core import untrusted
from wp1.core.errors import ConfigError
from wp1.runner.reports import make_report

MODULE = '''
from dataclasses import replace
from typing import Annotated, Literal

import numpy as np

from wp1.core.parts import Within
from wp1.workload.arrivals import Schedule
from wp1.workload.prompts import PromptSource, Requests, request_of


class Counting(PromptSource):
    """Prompt n counts up to n."""

    repeated = True

    def __init__(self, *, count_from: Annotated[int, Within(0, 8)] = 0, order: Literal["up", "down"] = "up"):
        self.first = count_from


    def prepare(self, cfg, data, tokens, cells, tell, given):
        return replace(data, own=[data.encode(" ".join(map(str, range(self.first, n + 1)))) for n in range(4)])

    def requests(self, cfg, cell, repeat, data):
        return Requests(
            cell.num_requests,
            lambda n: request_of(cfg, cell, repeat, f"{n}", [], f"up to {n}", n),
            lambda n: data.own[n % len(data.own)],
        )


def jittered(rng, count, rate, *, jitter: Annotated[float, Within(0)] = 0.0):
    return Schedule(np.arange(count) / rate + np.sort(rng.uniform(0, jitter, count)))


def backwards(count):
    return Schedule(np.arange(count)[::-1])
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


@pytest.mark.parametrize("key", ["prompts", "arrivals"])
def test_a_folder_s_command_that_names_it_has_to_be_typed(tmp_path: Path, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"workload\.{key}=mine\.own, which names code to run"):
        untrusted.check(tmp_path, [f"workload.{key}=mine.own"], [], str(tmp_path))


def test_it_and_its_arrivals_have_settings_of_their_own(words: list[str], command: Command, tmp_path: Path) -> None:
    own = ["workload.prompts=prompts_of_a_test.Counting", "workload.count_from=1", "workload.num_requests=4"]
    at_a_rate = ["workload.request_rate=100", "workload.arrivals=prompts_of_a_test.jittered", "workload.jitter=0.01"]
    code, said, _ = command(*words, *own, *at_a_rate)
    assert code == 0, said
    (run_dir,) = (tmp_path / "outputs").glob("run-*")
    workload = OmegaConf.load(run_dir / "config.yaml").workload
    assert (workload.count_from, workload.order, workload.jitter) == (1, "up", 0.01)
    records = [one for one in read_records(run_dir / "records.jsonl") if not one.warmup and one.repeat == 0]
    records.sort(key=lambda record: record.label)
    assert [record.prompt_tokens for record in records] == [0, 1, 3, 5]
    assert [record.t_intended for record in records] == sorted(record.t_intended for record in records)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("workload.count_form=1", "unknown key workload.count_form: did you mean workload.count_from?"),
        ("workload.concurency=2", "unknown key workload.concurency: did you mean workload.concurrency?"),
        ("workload.count_from=-1", "workload.count_from=-1 is too small: set workload.count_from to 0 or more"),
        ("workload.count_from=many", "workload.count_from"),
        ("workload.order=sideways", "workload.order=sideways is not known: set workload.order to up or down"),
        ("workload.prompts=random workload.count_from=1", "random prompts and poisson arrivals add no keys"),
        ("workload.num_requests=null", "Counting gives no requests with workload.num_requests=null: set workload.num"),
        ("workload.arrivals=prompts_of_a_test.jittered", "has no effect in a closed loop: set workload.request_rate"),
        ("workload.arrivals=prompts_of_a_test.jittered workload.jitter=-1", "workload.jitter=-1.0 is too small"),
        ("workload.request_rate=1 workload.arrivals=prompts_of_a_test.backwards", "ascending from 0 or later"),
        ("workload.request_rate=1 workload.arrivals=prompts_of_a_test.np", "is not a function"),
        ("workload.request_rate=1 workload.arrivals=prompts_of_a_test", "or to a package.module.function of your own"),
    ],
)
def test_a_setting_that_does_not_fit_is_one_line(
    words: list[str], command: Command, tmp_path: Path, settings: str, said: str
) -> None:
    code, told, _ = command(*words, "workload.prompts=prompts_of_a_test.Counting", *settings.split())
    assert code == 2, told
    assert said in told
    assert len(told.strip().splitlines()) == 1
    assert not list(tmp_path.glob("outputs/run-*/records.jsonl"))
