from pathlib import Path

import pytest

from tests.records import read_records
from wp1.core.errors import WP1Error
from wp1.core.jsonl import RecordWriter
from wp1.core.records import Request, new_record


def _record(n: int):
    request = Request(f"r{n}", "agg", "cell", 0, "text", 4, seed=n, label="käse | <b>")
    record = new_record(request, 1.23456789)
    record.status, record.t_tokens, record.token_ids, record.text = "ok", [2.0, 2.5], [1, 2], "é\n"
    return record


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    with RecordWriter(path) as writer:
        for n in range(3):
            writer.write(_record(n))
    found = read_records(path)
    assert [record.request_id for record in found] == ["r0", "r1", "r2"]
    assert found[0].t_intended == 1.234568
    assert (found[0].text, found[0].t_tokens, found[0].status) == ("é\n", [2.0, 2.5], "ok")


def test_each_record_is_on_disk_before_the_next(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    with RecordWriter(path) as writer:
        writer.write(_record(0))
        assert len(read_records(path)) == 1


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    with RecordWriter(path) as writer:
        writer.write(_record(0))
        writer.write(_record(1))
    path.write_text(path.read_text()[:-30])
    assert [record.request_id for record in read_records(path)] == ["r0"]


def test_a_bad_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text('{"request_id": 1}\n')
    with pytest.raises(WP1Error, match=r"records\.jsonl:1 "):
        read_records(path)
