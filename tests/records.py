"""Records read back as what was written, for tests: wp1 itself reads them as tables."""

from pathlib import Path

from wp1.core.records import RequestRecord, read_as


def read_records(path: Path) -> list[RequestRecord]:
    """All records of a file. Raises ConfigError naming the file and line of one that cannot be read."""
    return read_as(RequestRecord, path, "request record")
