"""What a report says of moving KV caches between engines. From `profiling.kv_transfer`; pure."""

from collections.abc import Mapping
from typing import Any

from wp1.analysis.base.markdown import fixed, ms, number, percent, short, table

HOW_TO_READ = """\
- **handoff**: the prefill engine's first token → the KV cache usable in the decode engine, with the wait for a place
  there; nothing where it was usable before, and part of TTFT only where the decode engine streams the first token.
- **transfer**: from the first byte that moves to the last"""
OF_COPY = """\
- **copy**: the time in which bytes moved, by the connector's own clock (a GPU's events); **copy GB/s** (1e9 bytes):
  bytes / that."""
OF_SPAN = """\
- **GB/s over transfers** (1e9 bytes): bytes / time in which any transfer was under way, its launching and messages
  included."""
TIMES = ("copy_ms", "transfer_ms", "handoff_ms", "decode_queue_ms")
STALL = """\
- **stall ratio**: sum of handoffs / sum of E2E. All of a handoff delays its request: what moves while the prompt is
  still computed delays nothing and lies before it."""


def section(profile: Mapping[str, Any]) -> str:
    """A row for each cell and one for all, which has no times of its own; "" for a run without handoffs.

    Rates are of the copying itself where the connector has a clock of its own. Over whole transfers they are only given
    where none began before its prompt was computed: its pauses are the prefill's.
    """
    if not profile:
        return ""
    cells = {**profile["cells"], "all": profile["overall"]} if len(profile["cells"]) > 1 else profile["cells"]
    own_clock, over_transfers = _rates(profile)
    rows = []
    for name, cell in cells.items():
        size = cell["bytes_a_handoff"].get("mean")
        # A median over short and long prompts together is of neither.
        mixed = cell is profile["overall"] and len(profile["cells"]) > 1
        times = {key: None if mixed else _times(cell[key]) for key in TIMES}
        copy = [times["copy_ms"], _rate(cell["copy_gb_per_s"])] if own_clock else []
        rows.append(
            [
                name,
                number(cell["handoffs"]) + (f" ({number(cell['failed'])} failed)" if cell["failed"] else ""),
                None if size is None else fixed(size / 1e6),
                *copy,
                *(times[key] for key in TIMES if key != "copy_ms"),
                *([_rate(cell["gb_per_s"])] if over_transfers else []),
                percent(cell["stall_ratio"]),
                percent(cell["share_of_ttft"]),
            ]
        )
    header = [
        "", "handoffs", "MB mean", *(["copy ms", "copy GB/s"] if own_clock else []), "transfer ms", "handoff ms",
        "wait for a place ms", *(["GB/s over transfers"] if over_transfers else []), "stall ratio",
        "share of TTFT",
    ]  # fmt: skip
    note = "Times are p50 / p95. The decode engine cannot go on with a request before its handoff has ended."
    early = profile["overall"]["overlapped"]
    if early:
        note += (
            f" {number(early)} of {number(profile['overall']['ok'])} transfers began before their prompt was computed "
            "(transfer.overlap=on): they are as long as what was left of it, most of which is waiting for the next "
            "piece. What such a transfer costs is its copy, and what it delays is the handoff."
        )
    columns = "l" + "r" * (len(header) - 1)
    return f"## KV transfer\n\n{table(header, rows, columns)}\n\n{note}{_longest_queues(profile['overall'])}"


def how_to_read(profile: Mapping[str, Any]) -> str:
    """The words of `section`, those that occur in it."""
    own_clock, over_transfers = _rates(profile)
    pauses = ", with pauses for the rest of the prompt." if profile["overall"]["overlapped"] else "."
    return "\n".join([HOW_TO_READ + pauses, *[OF_COPY] * own_clock, *[OF_SPAN] * over_transfers, STALL])


def _rates(profile: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether there are rates of copying, and of whole transfers."""
    overall = profile["overall"]
    return overall["copy_gb_per_s"] is not None, not overall["overlapped"]


def _times(found: Mapping[str, Any]) -> str | None:
    return " / ".join(ms(found[p]) or "—" for p in ("p50", "p95")) if found["n"] else None


def _rate(value: float | None) -> str | None:
    return None if value is None else short(value)


def _longest_queues(overall: Mapping[str, Any]) -> str:
    queues = overall["queues"]
    if not queues["samples"]:
        return ""
    lengths = [
        f"{words} {number(queues[name]['max'])} (mean {short(queues[name]['mean'])})"
        for name, words in (("prefill_waiting", "prefill"), ("decode_waiting", "decode"))
    ]
    return (
        f" Requests that waited in wp1 for a place in an engine, at most: {', '.join(lengths)}; those that waited "
        "within an engine are not among them, but in **queue**."
    )
