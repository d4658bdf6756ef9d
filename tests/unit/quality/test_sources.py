"""Rows from files and from `datasets`: which are read, which are refused, and that a draw is the same everywhere."""

import json
import random
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.conftest import SHARED, Compose
from wp1.core.errors import ConfigError
from wp1.quality import sources
from wp1.quality.benchmarks import find

Row = dict[str, Any]


def _rows(count: int, start: int = 0) -> list[Row]:
    return [
        {"_id": f"id{n}", "input": f"Question {n}?", "context": f"Context {n}. " * 5, "answers": [f"a{n}"], "length": 9}
        for n in range(start, start + count)
    ]


def _write(path: Path, rows: Iterable[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def dataset(config: Compose) -> Callable[..., Any]:
    def dataset_(path: Path | None, *overrides: str, group: str = "longbench", task: str = "hotpotqa") -> Any:
        words = [f"dataset={group}", f"dataset.tasks=[{task}]", "workload=scored", *overrides]
        return config(*words, *([] if path is None else [f"dataset.path={path}"])).dataset

    return dataset_


def _draw(dataset: Any, *tasks: str, seed: int = 42) -> sources.Drawn:
    return sources.draw(dataset, [find(task) for task in tasks or ("hotpotqa",)], seed)


def test_a_draw_does_not_depend_on_the_order_in_the_file(tmp_path: Path, dataset: Callable[..., Any]) -> None:
    rows = _rows(50)
    first = _draw(dataset(_write(tmp_path / "a.jsonl", rows), "dataset.samples_per_task=7"))
    random.Random(1).shuffle(rows)
    second = _draw(dataset(_write(tmp_path / "b.jsonl", rows), "dataset.samples_per_task=7"))
    assert [row.id for row in first.rows] == [row.id for row in second.rows]
    assert first.digest() == second.digest()
    assert first.seen == {"hotpotqa": 50}
    other = _draw(dataset(tmp_path / "a.jsonl", "dataset.samples_per_task=7"), seed=43)
    assert {row.id for row in other.rows} != {row.id for row in first.rows}


def test_a_draw_is_known(tmp_path: Path, dataset: Callable[..., Any]) -> None:
    """If this changes, new scores cover other rows than earlier scores."""
    drawn = _draw(dataset(_write(tmp_path / "a.jsonl", _rows(50)), "dataset.samples_per_task=3"))
    assert [row.id for row in drawn.rows] == ["id31", "id36", "id35"]


def test_fewer_samples_are_the_first_of_more(tmp_path: Path, dataset: Callable[..., Any]) -> None:
    path = _write(tmp_path / "a.jsonl", _rows(30))
    few, many = (_draw(dataset(path, f"dataset.samples_per_task={n}")) for n in (4, 12))
    assert [row.id for row in many.rows[:4]] == [row.id for row in few.rows]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"context": ', "is not JSON"),
        ("[]", "is not an object"),
        ('{"input": "q", "answers": ["a"]}', 'has no "context"'),
        ('{"input": "q", "context": " ", "answers": ["a"]}', 'has an empty "context"'),
        ('{"input": "q", "context": "c", "answers": []}', 'has no "answers"'),
        ('{"input": "q", "context": "c", "answers": [{}]}', "not texts or numbers"),
        ('{"input": 3, "context": "c", "answers": ["a"]}', 'has a "input" that is not a text'),
        ('{"_id": "id1", "input": "q", "context": "c", "answers": ["a"]}', "repeats the id id1"),
        ('{"input": "q", "context": "\\ud800", "answers": ["a"]}', "lone surrogate"),
        ('{"_id": "\\ud800", "input": "q", "context": "c", "answers": ["a"]}', 'lone surrogate) in "_id"'),
        ('{"input": "q", "context": "c", "answers": ["a\\udfff"]}', 'lone surrogate) in "answers"'),
        ('{"input": "q", "context": "c", "answers": ["a", null]}', "null is among them"),
        ('{"input": "q", "context": "c", "answers": ["a", ["b"]]}', "a list is among them"),
        ('{"input": "q", "context": "c", "answers": [NaN]}', "has NaN, which is not a number in JSON"),
        ('{"input": "q", "context": "c", "answers": ["a"], "length": %s}' % ("9" * 3000), "a number of 3,000 digits"),
        ('{"_id": "a\\u0000", "input": "q", "context": "c", "answers": ["a"]}', '"_id" with control characters'),
        ('{"_id": true, "input": "q", "context": "c", "answers": ["a"]}', '"_id" that is neither text nor a number'),
        ('{"input": "q", "context": "c", "answers": ["a"], "length": "long"}', 'a "length" that is not a whole number'),
    ],
)
def test_a_bad_row_is_named_by_file_and_line_or_left_out(
    tmp_path: Path, dataset: Callable[..., Any], line: str, said: str
) -> None:
    path = _write(tmp_path / "hotpotqa.jsonl", _rows(2))
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ConfigError, match=r"hotpotqa\.jsonl:3 .*on_bad_row=skip") as caught:
        _draw(dataset(tmp_path))
    assert said in str(caught.value)
    drawn = _draw(dataset(tmp_path, "dataset.on_bad_row=skip"))
    assert len(drawn.rows) == 2
    assert len(drawn.bad) == 1


def test_a_line_without_end_is_a_bad_row(
    tmp_path: Path, dataset: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "MAX_LINE", 1000)
    path = tmp_path / "hotpotqa.jsonl"
    path.write_text(json.dumps(_rows(1)[0] | {"context": "x" * 5000}) + "\n" + json.dumps(_rows(1, 5)[0]) + "\n")
    drawn = _draw(dataset(path, "dataset.on_bad_row=skip"))
    assert [row.id for row in drawn.rows] == ["id5"]
    assert "is longer than" in drawn.bad[0]


def test_filters_come_before_the_draw(tmp_path: Path, dataset: Callable[..., Any]) -> None:
    rows = _rows(20)
    for n, row in enumerate(rows):
        row["language"] = "zh" if n % 2 else "en"
        row["context"] = "x" * (n + 1)
    path = _write(tmp_path / "a.jsonl", rows)
    drawn = _draw(dataset(path, "dataset.languages=[en]", "dataset.min_chars=5", "dataset.max_chars=10"))
    assert sorted(row.id for row in drawn.rows) == ["id4", "id6", "id8"]
    assert drawn.seen == {"hotpotqa": 3}
    with pytest.raises(ConfigError, match=r"has no rows .*languages"):
        _draw(dataset(path, "dataset.languages=[fr]"))


def test_json_and_parquet_give_the_same_rows_as_jsonl(tmp_path: Path, dataset: Callable[..., Any]) -> None:
    rows = _rows(9)
    _write(tmp_path / "a.jsonl", rows)
    (tmp_path / "b.json").write_text(json.dumps(rows))
    (tmp_path / "c.json").write_text(json.dumps({"data": rows}))
    pl.DataFrame(rows).write_parquet(tmp_path / "d.parquet")
    digests = {_draw(dataset(tmp_path / name)).digest() for name in ("a.jsonl", "b.json", "c.json", "d.parquet")}
    assert len(digests) == 1
    (tmp_path / "e.parquet").write_text("no")
    with pytest.raises(ConfigError, match="is not a Parquet file"):
        _draw(dataset(tmp_path / "e.parquet"))


def test_the_hub_s_path_gives_the_same_rows_as_a_file(tmp_path: Path, dataset: Callable[..., Any]) -> None:
    """All but the download: `datasets` reads a file of this machine."""
    _write(tmp_path / "hotpotqa.jsonl", _rows(9))
    own = _draw(dataset(tmp_path))
    hub = _draw(dataset(None, "dataset.repo=null", "dataset.config=null", f"dataset.files='{tmp_path}/{{task}}.jsonl'"))
    assert own.digest() == hub.digest()
    with pytest.raises(ConfigError, match=r"hotpotqa of .* could not be fetched .*dataset\.path"):
        _draw(dataset(None, "dataset.repo=null", "dataset.config=null", f"dataset.files='{tmp_path}/no.jsonl'"))


def test_infinitebench_has_its_types_stated(tmp_path: Path, dataset: Callable[..., Any]) -> None:
    """The first rows have no options and numeric answers, from which other types would be inferred."""
    rows = [{"id": n, "context": "c", "input": "q", "answer": [n], "options": []} for n in range(3)] + [
        {"id": 9, "context": "c", "input": "q", "answer": [7], "options": []}
    ]
    _write(tmp_path / "math_find.jsonl", rows)
    drawn = _draw(
        dataset(
            None, "dataset.repo=null", f"dataset.files='{tmp_path}/{{task}}.jsonl'", group="infinitebench",
            task="math_find",
        ),
        "math_find",
    )  # fmt: skip
    row = next(row for row in drawn.rows if row.id == "9")
    assert row.answers == ["7"]
    assert find("math_find").score("7", row) == 1.0


def test_books_from_the_hub_become_texts_and_questions(tmp_path: Path, dataset: Callable[..., Any]) -> None:
    books = [
        {"short_book_title": f"Book {n}", "url": f"u{n}", "text": " ".join(f"w{n}-{k}" for k in range(900))}
        for n in range(4)
    ]
    pl.DataFrame(books).write_parquet(tmp_path / "test.parquet")
    tasks = ("pg19_perplexity", "pg19_next_passage")
    settings = dataset(
        None, "dataset.repo=null", f"dataset.files='{tmp_path}/test.parquet'", "dataset.samples_per_task=3",
        group="pg19", task=",".join(tasks),
    )  # fmt: skip
    drawn = _draw(settings, *tasks)
    assert drawn.seen == dict.fromkeys(tasks, 4)
    texts, questions = drawn.rows[:3], drawn.rows[3:]
    assert all(row.context == books[int(row.id[1])]["text"] for row in texts)
    for row in questions:
        right = row.choices["ABCD".index(row.answers[0])].split()
        assert len(set(row.choices)) == 4
        told = [*row.context.split(), *right]
        assert told == books[int(row.id[1])]["text"].split()[: len(told)]
        assert find("pg19_next_passage").prompt(row).endswith("The passage that follows is")
    file = dataset(tmp_path / "test.parquet", "dataset.samples_per_task=3", group="pg19", task=",".join(tasks))
    assert _draw(file, *tasks).digest() == drawn.digest()
    pl.DataFrame([books[0] | {"text": "too short"}]).write_parquet(tmp_path / "test.parquet")
    with pytest.raises(ConfigError, match='row 0 has a "text" of 2 words: at least 480 are needed'):
        _draw(settings, "pg19_next_passage")


def test_one_file_for_several_tasks_tells_them_apart(tmp_path: Path, dataset: Callable[..., Any]) -> None:
    rows = [row | {"dataset": "hotpotqa" if n < 3 else "qasper"} for n, row in enumerate(_rows(5))]
    settings = dataset(_write(tmp_path / "all.jsonl", rows), "dataset.tasks=[hotpotqa,qasper]")
    drawn = _draw(settings, "hotpotqa", "qasper")
    assert drawn.seen == {"hotpotqa": 3, "qasper": 2}
    _write(tmp_path / "all.jsonl", _rows(2))
    with pytest.raises(ConfigError, match=r'all\.jsonl:1 has no "task"'):
        _draw(settings, "hotpotqa", "qasper")


def test_memory_does_not_grow_with_the_file(tmp_path: Path, dataset: Callable[..., Any]) -> None:
    path = tmp_path / "hotpotqa.jsonl"
    with path.open("w") as file:
        for n in range(400):
            row = {"_id": str(n), "input": "q", "context": f"{n} " + "x" * 100_000, "answers": ["a"]}
            file.write(json.dumps(row) + "\n")
    settings = dataset(path, "dataset.samples_per_task=5")
    _draw(settings)
    tracemalloc.start()
    _draw(settings)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert path.stat().st_size > 40_000_000
    assert peak < 8_000_000


LONGBENCH = SHARED / "longbench"


@pytest.mark.skipif(not LONGBENCH.is_dir(), reason=f"{LONGBENCH} is absent")
def test_official_rows_are_read(dataset: Callable[..., Any]) -> None:
    drawn = _draw(dataset(LONGBENCH, "dataset.samples_per_task=null", task="multi_news"), "multi_news")
    assert drawn.seen == {"multi_news": 200}
    v2 = SHARED / "longbench_v2" / "longbench_v2_sample9.jsonl"
    drawn = _draw(dataset(v2, group="longbench_v2", task="longbench_v2"), "longbench_v2")
    assert len(drawn.rows) == 9
    assert {row.answers[0] for row in drawn.rows} <= set("ABCD")
    ruler = SHARED / "ruler"
    settings = dataset(ruler, "dataset.config=null", task="vt,cwe,niah_single_1")
    drawn = _draw(settings, "vt", "cwe", "niah_single_1")
    assert drawn.seen == {"vt": 12, "cwe": 12, "niah_single_1": 12}
