"""Records read back as what was written, for tests: wp1 itself reads them as tables."""

from pathlib import Path

from wp1.core.records import RequestRecord, read_rows


def read_records(path: Path) -> list[RequestRecord]:
    """All records of a file but a torn last one. Raises ConfigError naming the file and line of one that is none."""
    return [RequestRecord(**row) for row in read_rows(path, "request record", "request_id", "status")]
