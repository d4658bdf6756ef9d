"""A benchmark from outside the tree, in one module and one conf file: run, scored, reported, and reported again."""

import json
import sys
from pathlib import Path

import pytest

from tests.records import read_records
from tests.unit.conftest import Command
from tests.unit.quality.word_tokens import WordTokens
from wp1 import score
from wp1.core.errors import ConfigError
from wp1.core.run_folder import read_json
from wp1.runner.reports import make_report

MODULE = '''
"""Sums of two numbers, which get harder with their digits."""
import random

from wp1.quality.tasks import Benchmark, BuiltIn, Made, Predictions, Reporting, Row, Task


def task(name):
    return Task(
        name=name,
        benchmark="sums",
        category=name,
        max_tokens=3,
        prompt=lambda row: f"What is {row.question}?",
        score=lambda prediction, row: sum(word in row.answers for word in prediction.split()) / 3,
        metric="found",
    )


def maker(making):
    def make(name, seed, number):
        a, b = (random.Random(f"{seed}/{name}/{number}/{part}").randrange(900) for part in "ab")
        group = "odd" if (a + b) % 2 else "even"
        # The engine double counts up from a number below 1,000: two of its three numbers are right.
        row = Row(f"{making.length}-{number}", name, question=f"{a} + {b}", answers=[f"{n}" for n in range(0, 1002, 2)],
                  groups=(group,), length=making.length)
        return [Made(row, making.tokens.chat(task(name).prompt(row)))]

    return make


BENCHMARK = Benchmark(
    name="sums",
    names=("add", "add_long"),
    task=task,
    built_in=BuiltIn(tasks=("add", "add_long"), maker=maker, variant="Sums are of wp1's tests."),
    predictions=Predictions(groups=lambda name, fields: [fields["group"]]),
    reporting=Reporting("Sums", by_category=True, groups=("even", "odd"), threshold=40.0),
)
'''
CONF = """
name: sums
source: builtin
benchmark: benchmark_of_a_test
tasks: [sums_subset]
prompt_lens: [64, 128]
samples_per_task: 3
"""
MODEL = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 512,
    "max_position_embeddings": 8192, "torch_dtype": "bfloat16",
}  # fmt: skip


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The module and its conf file in a folder of their own; the words of a command that asks it of a small model."""
    (tmp_path / "python").mkdir()
    (tmp_path / "python" / "benchmark_of_a_test.py").write_text(MODULE)
    (tmp_path / "conf" / "dataset").mkdir(parents=True)
    (tmp_path / "conf" / "dataset" / "sums.yaml").write_text(CONF)
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(MODEL))
    header = json.dumps({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode()
    (model / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0")
    (model / "tokenizer.json").write_text("{}")
    monkeypatch.syspath_prepend(tmp_path / "python")
    monkeypatch.delitem(sys.modules, "benchmark_of_a_test", raising=False)
    monkeypatch.setattr("wp1.runner.prompt_data.ModelTokens", lambda folder: WordTokens())
    return [
        "--config-dir", str(tmp_path / "conf"), "experiment=e4", "dataset=sums", f"model.path={model}",
        f"root={tmp_path}", "tracking.enabled=false", "workload.max_warmup=1",
    ]  # fmt: skip


def test_it_is_asked_scored_and_reported(outside: list[str], command: Command, tmp_path: Path) -> None:
    code, said, _ = command(*outside)
    assert code == 0, said
    (run_dir,) = (tmp_path / "outputs").glob("run-*")
    texts = [record.text for record in read_records(run_dir / "records.jsonl") if not record.warmup]
    assert len(texts) == 2 * 2 * 3
    quality = read_json(run_dir / "summary.json")["quality"]
    (arm,) = quality["arms"].values()
    scores = [sum(int(word) % 2 == 0 for word in text.split()) / 3 for text in texts]
    assert arm["benchmarks"]["sums"]["mean"] == pytest.approx(100 * sum(scores) / len(scores), abs=0.01)
    told = {(task["task"], task["metric"], task["n"]) for task in arm["tasks"]}
    assert told == {("add", "found", 6), ("add_long", "found", 6)}
    assert set(arm["groups"]) <= {"sums, even", "sums, odd"}
    assert arm["effective_length"]["of"] == "Sums"
    page = (tmp_path / "outputs" / "reports" / f"{run_dir.name}.md").read_text()
    assert "Effective length on Sums's tasks" in page
    assert "Sums are of wp1's tests." in page
    assert "built-in tasks" not in page


def test_a_report_made_again_imports_nothing_that_the_folder_names(
    outside: list[str], command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command(*outside)[0] == 0
    (run_dir,) = (tmp_path / "outputs").glob("run-*")
    page = tmp_path / "outputs" / "reports" / f"{run_dir.name}.md"
    before = page.read_text(), (run_dir / "summary.json").read_bytes()
    monkeypatch.delitem(sys.modules, "benchmark_of_a_test")
    (tmp_path / "python" / "benchmark_of_a_test.py").write_text("raise RuntimeError('imported')")
    make_report(run_dir, page.parent)
    assert (page.read_text(), (run_dir / "summary.json").read_bytes()) == before
    (run_dir / "scores.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"scores\.jsonl is missing: it holds the scores of sums"):
        make_report(run_dir, page.parent)


def test_its_files_of_predictions_are_scored(
    outside: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"prediction": "2 4 x", "answers": ["2", "4"], "group": "even"},
        {"pred": "", "answers": ["7"], "group": "odd"},
    ]
    for name in ("add", "add_long"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["--benchmark", "benchmark_of_a_test", "--json", "sums", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["wp1.score", *words])
    score.main()
    found = json.loads(capsys.readouterr().out)
    assert [task["mean"] for task in found["tasks"]] == [pytest.approx(100 / 3, abs=0.01)] * 2
    assert found["overall"]["sums"]["over"] == "categories"
    assert set(found["overall"]["sums"]["groups"]) == {"even", "odd"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            "import nothing_of_that_name",
            "dataset.benchmark=benchmark_of_a_test cannot be imported (ModuleNotFoundError",
        ),
        ("BENCHMARK = 1", "dataset.benchmark=benchmark_of_a_test has no BENCHMARK"),
        (MODULE.replace('name="sums"', 'name="ruler"'), "wp1 already has a benchmark named ruler"),
        (MODULE.replace('"add_long"', '"subtract"'), None),
    ],
)
def test_what_is_wrong_with_it_is_one_line(
    outside: list[str], command: Command, tmp_path: Path, content: str, said: str | None
) -> None:
    (tmp_path / "python" / "benchmark_of_a_test.py").write_text(content)
    code, told, _ = command(*outside, *([] if said else ["dataset.tasks=[add_long]"]))
    assert code == 2
    assert len(told.strip().splitlines()) == 1
    assert (said or "dataset.tasks: there is no task add_long") in told


def test_a_folder_s_command_that_names_it_has_to_be_typed(outside: list[str], tmp_path: Path) -> None:
    from wp1.core import untrusted

    with pytest.raises(ConfigError, match=r"dataset\.benchmark=mine\.sums, which names code to run"):
        untrusted.check(tmp_path, ["dataset.benchmark=mine.sums"], [], str(tmp_path))
