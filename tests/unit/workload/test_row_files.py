"""Files of rows: the format is detected from the content, and a row that would end a run later is refused by line."""

import json
from pathlib import Path
from typing import Any

import pytest

from wp1.core.errors import ConfigError
from wp1.workload import row_files
from wp1.workload.row_files import BadRowError


def _read(path: Path, content: bytes, name: str = "a.jsonl") -> list[tuple[str, Any]]:
    file = path / name
    file.write_bytes(content)
    return [
        (where.removeprefix(f"{path}/"), str(row) if isinstance(row, BadRowError) else row)
        for where, row in row_files.read(file)
    ]


def _bad(path: Path, content: bytes) -> str:
    [(where, row)] = _read(path, content)
    assert where == "a.jsonl:1"
    assert isinstance(row, str), row
    return row


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.txt"])
def test_lines_and_arrays_are_distinguished_by_content(tmp_path: Path, name: str) -> None:
    rows = [{"a": 1}, {"b": [1, "x"]}, {"c": {"d": "é"}}]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    assert [row for _, row in _read(tmp_path, lines, name)] == rows
    for text in (json.dumps(rows), json.dumps(rows, indent=2), f"\n {json.dumps(rows)}\r\n"):
        assert [row for _, row in _read(tmp_path, text.encode(), name)] == rows


def test_byte_order_marks_blank_lines_and_windows_line_ends_are_accepted(tmp_path: Path) -> None:
    for mark in (b"", b"\xef\xbb\xbf"):
        content = mark + b'\r\n{"a": 1}\r\n\r\n  \n{"b": "2"}'
        assert _read(tmp_path, content) == [("a.jsonl:2", {"a": 1}), ("a.jsonl:5", {"b": "2"})]
        content = mark + b' \r\n[\r\n{"a": 1},\r\n\r\n{"b": 2}, {"c": 3}]\r\n'
        assert _read(tmp_path, content) == [
            ("a.jsonl:3", {"a": 1}), ("a.jsonl:5", {"b": 2}), ("a.jsonl:5 (row 3)", {"c": 3}),
        ]  # fmt: skip


def test_a_json_object_holds_rows_under_data_or_is_a_row(tmp_path: Path) -> None:
    data = json.dumps({"version": 1, "data": [{"a": 1}, 3]}, indent=1).encode()
    assert _read(tmp_path, data, "a.json") == [
        ("a.json (row 1)", {"a": 1}), ("a.json (row 2)", "is not an object"),
    ]  # fmt: skip
    assert _read(tmp_path, b'{\n"a":\n1}', "a.json") == [("a.json:1", {"a": 1})]
    assert _read(tmp_path, b"") == _read(tmp_path, b"[]") == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"a": NaN}', "has NaN, which is not a number in JSON"),
        (b'{"a": [{"b": -Infinity}]}', "has -Infinity"),
        (b'{"a": 1e999}', "a number that is too large"),
        (b'{"a": ' + b"7" * 3000 + b"}", "a number of 3,000 digits"),
        (b'{"a": ' + b"7" * 9000 + b"}", "a number of 9,000 digits"),
        (b'{"a": ' + b"[" * 200_000, "is nested too deeply"),
        (b'{"a": "\x00"}', "is not JSON: Invalid control character"),
        (b'{"a": "\\ud83d"}', 'half a character (a lone surrogate) in "a"'),
        (b'{"b": [{"c": "\\udc00 x"}]}', 'half a character (a lone surrogate) in "b"'),
        (b'{"\\ud83d": 1}', "half a character"),
        (b'{"a": 1} {"b": 2}', "there is more after its end"),
        (b'{"a": ', "is not JSON"),
        (b'{"a": "\xff"}', "is not UTF-8 text"),
        (b'"text"', "is not an object"),
        (b"7", "is not an object"),
    ],
)
def test_what_would_end_a_run_later_is_a_bad_row(tmp_path: Path, line: bytes, message: str) -> None:
    assert message in _bad(tmp_path, line)
    # The rows before and after it are read.
    assert [type(row) for _, row in _read(tmp_path, b'{"a": 1}\n' + line + b'\n{"b": 2}\n')] == [dict, str, dict]


def test_a_complete_surrogate_pair_is_accepted(tmp_path: Path) -> None:
    assert _read(tmp_path, b'{"a": "\\ud83d\\ude00"}') == [("a.jsonl:1", {"a": "\U0001f600"})]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[{"a": 1}\n{"b": 2}]', "a.json:2 is not JSON: a comma or the end of the array is missing after row 1"),
        (b'[{"a": 1},\n\n{"b": ]', "a.json:3 is not JSON: Expecting value"),
        (b'[{"a": 1}', "a.json:1 is not JSON"),
        (b'[{"a": 1}]\n[', "a.json:2 is not JSON: there is more after the array's end"),
        (b"[" * 200_000, "a.json:1 is nested too deeply"),
        (b'[{"a": "\xff"}]', "a.json is not UTF-8 text"),
        ("[]".encode("utf-16"), "a.json cannot be read: it is UTF-16"),
    ],
)
def test_an_array_that_is_not_json_is_refused_with_its_line(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        _read(tmp_path, content, "a.json")
    assert message in str(caught.value)


def test_bad_rows_of_an_array_do_not_affect_the_others(tmp_path: Path) -> None:
    content = b'[{"a": NaN},\n{"a": "\\ud83d"},\n[1],\n{"a": 2}]'
    assert [type(row) for _, row in _read(tmp_path, content)] == [str, str, str, dict]


def test_huge_rows_are_bad_rows(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    for content in ('{"a": "%s"}\n{"b": 1}\n' % ("x" * 5000), '[{"a": "%s"},\n{"b": 1}]' % ("x" * 5000)):
        file.write_text(content)
        rows = [row for _, row in row_files.read(file, max_line=1000)]
        assert "is longer than 1,000 bytes" in str(rows[0])
        assert rows[1] == {"b": 1}


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.jsonl cannot be read: No such file"):
        list(row_files.read(tmp_path / "missing.jsonl"))


@pytest.mark.parametrize("value", [True, 1.5, None, ["a"], {"a": 1}, "a\x00b", "x" * 1001])
def test_an_id_can_be_part_of_a_request_s_name(value: Any) -> None:
    with pytest.raises(BadRowError, match=r'has .*"id"'):
        row_files.id_of(value, "id")
    assert row_files.id_of(7, "id") == "7"
