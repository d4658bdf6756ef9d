"""Questions and prompts of the built-in data sets and of files of one's own."""

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from wp1.core.errors import ConfigError
from wp1.workload import dataset


def _dataset(path: Path, **changes: Any):
    return OmegaConf.create({"name": "file", "source": "file", "path": str(path), "limit": None} | changes)


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('{"question": "Why?", "context": "Because."}\n\n{"id": 7, "question": "How?"}\n')
    rows = dataset.read(_dataset(path)).rows
    assert [(row.id, row.prompt) for row in rows] == [("q1", "Because.\n\nWhy?"), ("7", "How?")]
    assert len(dataset.read(_dataset(path, limit=1)).rows) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"q\.jsonl:1 is not JSON"),
        ('{"question": "a"}\n[1]', r"q\.jsonl:2 is not an object"),
        ('{"context": "a"}', r'q\.jsonl:1 has no "question"'),
        ('{"question": " "}', r'q\.jsonl:1 has no "question"'),
        ('{"question": "a", "context": 3}', r'q\.jsonl:1 has a "context"'),
        ('{"question": "a", "id": 1}\n{"question": "b", "id": 1}', r"q\.jsonl:2 repeats the id 1"),
        ("\n", r"q\.jsonl has no questions"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        dataset.read(_dataset(path))


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"q\.jsonl cannot be read"):
        dataset.read(_dataset(path))


def test_an_unknown_builtin_names_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"dataset\.name=other .* questions"):
        dataset.read(OmegaConf.create({"name": "other", "source": "builtin", "path": None, "limit": None}))
