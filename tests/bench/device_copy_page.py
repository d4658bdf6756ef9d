"""The page of `tests.bench.device_copy`, made from the rows in its folder.

facts.json   the machine and versions
rows.jsonl   one line for each thing measured: median, least and most ms of its repeats
copy.md      the page
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from wp1.analysis.base.markdown import table

Row = dict[str, Any]
# Columns of the table by size: what, how, and the heading.
BY_SIZE = [
    ("kernel, ipc", "queued", "kernel alone"),
    ("kernel, ipc", "idle", "with its launch"),
    ("DeviceCopier, run", "told", "as transfer=ipc reports"),
    ("DeviceCopier, aged", "told", "the same, aged pool"),
    ("DeviceCopier, run", "waited", "as its caller waits"),
    ("kernel, pushed", "queued", "kernel alone, writing"),
    ("one piece", "queued", "torch's copy, one piece"),
    ("kernel, one GPU", "queued", "kernel alone, one GPU"),
]


def write_page(folder: Path) -> str:
    """Writes copy.md and returns its text. Raises FileNotFoundError if the folder has no facts or rows."""
    facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    page = page_of(facts, rows)
    (folder / "copy.md").write_text(page, encoding="utf-8")
    return page


def page_of(facts: dict[str, str], rows: list[Row]) -> str:
    """Returns the page as Markdown."""
    found = {(row["what"], row["how"], row["blocks"]): row for row in rows if "rest_s" not in row}
    counts = sorted({row["blocks"] for row in rows if row["what"] == "kernel, ipc"})
    by_size = [
        [f"{count:,}", f"{found['kernel, ipc', 'queued', count]['bytes'] / 1e6:,.1f}"]
        + [f"{found[what, how, count]['ms']:.3f}" for what, how, _ in BY_SIZE]
        for count in counts
    ]
    fits = [fit([(row["bytes"], row["ms"]) for key, row in found.items() if key[:2] == (w, h)]) for w, h, _ in BY_SIZE]
    by_size.append(["fit: ms beyond bytes", "", *(f"{first:.3f}" for first, _ in fits)])
    by_size.append(["fit: GB/s", "", *(f"{rate:,.0f}" for _, rate in fits)])
    rested = {(row["rest_s"], row["how"]): row["ms"] for row in rows if "rest_s" in row}
    rests = [
        [f"{rest_s * 1e3:,.0f}", f"{rested[rest_s, 'queued']:.3f}", f"{rested[rest_s, 'idle']:.3f}"]
        for rest_s in sorted({rest_s for rest_s, _ in rested})
    ]
    in_a_row: dict[str, list[str]] = {}
    for row in rows:
        if row["what"].startswith("in a row "):
            in_a_row.setdefault(row["what"].removeprefix("in a row "), []).append(f"{row['ms']:.3f}")
    lines = [
        "# What a copy of KV between two GPUs costs beyond its bytes",
        "",
        f"No model, only its KV layout (8B shape, 32 layers, blocks of 16 tokens); {facts['machine']}; "
        f"{facts['versions']}. Medians of CUDA event times in ms.",
        "",
        table(
            ["blocks", "MB", *(heading for *_, heading in BY_SIZE)],
            by_size,
            "r" * (2 + len(BY_SIZE)),
        ),
        "",
        "The fit is ms = a + bytes / rate by least squares, weighted by 1 / ms.",
        "",
        "A copy of 64 blocks (1,024 tokens) after both GPUs have rested:",
        "",
        table(["rest, ms", "kernel alone", "with its launch"], rests, "rrr"),
        "",
        "Copies queued one behind the other after a rest of 50 ms, kernel alone:",
        "",
        table(["blocks of each", "ms of each"], [[what, ", ".join(ms)] for what, ms in in_a_row.items()], "lr"),
        "",
    ]
    return "\n".join(lines)


def fit(rows: list[tuple[int, float]]) -> tuple[float, float]:
    """Fits ms = a + bytes / rate, each row weighted by 1 / ms. Returns a in ms and the rate in GB/s."""
    sizes, times = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    [slope, first] = np.polyfit(sizes, times, 1, w=1 / times)
    return float(first), float(1 / slope / 1e6)
