"""Records read back as what was written, for tests: wp1 itself reads them as tables."""

from pathlib import Path

from wp1.core.jsonl import read_rows
from wp1.core.records import RequestRecord


def read_records(path: Path) -> list[RequestRecord]:
    """All records of a file, without a torn last line. Raises ConfigError, with file and line, if one is malformed."""
    return [RequestRecord(**row) for row in read_rows(path, "request record", "request_id", "status")]
