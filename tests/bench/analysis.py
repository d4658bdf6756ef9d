"""Time and memory from a large run's records to its report: a million synthetic requests of 100 tokens.

Runs the whole of `python -m wp1.report` in a process of its own: reading, tables, metrics, the page and its plots. For
comparison, Python's json reads a twentieth of the lines, and its time is extrapolated to all of them.

Run by `make bench`, or alone: `python -m tests.bench.analysis [REQUESTS]`. Writes 3 GB to the temporary folder.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

from tests.bench.synthetic_records import write_run

REQUESTS, TOKENS = 1_000_000, 100


def rows(requests: int = REQUESTS) -> list[list[str]]:
    """One row of the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = write_run(Path(name) / "run", requests, TOKENS)
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-m", "wp1.report", str(folder), "--reports", f"{name}/reports"], check=True)
        seconds = time.perf_counter() - begin
        # The peak of the largest child that has ended, in KiB on Linux.
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024**2
        part = max(1, requests // 20)
        begin = time.perf_counter()
        with (folder / "records.jsonl").open(encoding="utf-8") as lines:
            read = sum(1 for line in islice(lines, part) if json.loads(line))
        plain = (time.perf_counter() - begin) * requests / read
        size = (folder / "records.jsonl").stat().st_size
    return [
        [
            f"analysis of {requests:,} requests, {size / 1e9:.1f} GB: report / json.loads of the lines",
            f"{seconds:.1f} s, at most {peak:.2f} GiB",
            f"{plain:.1f} s",
            f"{seconds / plain:.3f}",
            "",
            "< 120 s, < 4 GiB",
        ]
    ]


if __name__ == "__main__":
    print("\t".join(rows(int(sys.argv[1]) if len(sys.argv) > 1 else REQUESTS)[0]))
