"""Each completely measured repeat has one line."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from wp1.core import progress
from wp1.core.errors import ConfigError
from wp1.core.records import Done
from wp1.core.run_files import CELLS

ONE = Done("agg", "64-conc1", 0, requests=3, seconds=1.0, warmup_s=0.1)


def test_the_last_line_of_a_repeat_counts_and_a_truncated_one_does_not(tmp_path: Path) -> None:
    assert progress.read(tmp_path) == []
    again = replace(ONE, seconds=2.0)
    for done in (ONE, replace(ONE, repeat=1), again):
        progress.note(tmp_path, done)
    with (tmp_path / CELLS.name).open("a") as file:
        file.write('{"arm": "ag')
    assert progress.read(tmp_path) == [replace(ONE, repeat=1), again]


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    (tmp_path / CELLS.name).write_text(json.dumps({"arm": "agg"}) + "\n")
    with pytest.raises(ConfigError, match=r"cells\.jsonl:1 is not a valid line"):
        progress.read(tmp_path)
