"""The report's section on moving KV caches between engines, from `profiling.kv_transfer`. Pure."""

from collections.abc import Mapping
from typing import Any

from wp1.analysis.base.markdown import fixed, ms, number, percent, short, table

HOW_TO_READ = """\
- **handoff**: from the prefill engine's first token until the decode engine can use the KV cache, including the wait
  for a place there; zero if it could use it earlier. It is part of TTFT only if the decode engine streams the first
  token.
- **transfer**: from the first byte that moves to the last"""
OF_COPY = """\
- **copy**: the time in which bytes moved, by the connector's own clock (GPU events); **copy GB/s**: bytes / copy time,
  with 1 GB = 1e9 bytes."""
OF_SPAN = """\
- **GB/s over transfers**: bytes / time in which any transfer was under way, including launches and messages, with
  1 GB = 1e9 bytes."""
TIMES = ("copy_ms", "transfer_ms", "handoff_ms", "decode_queue_ms")
STALL = """\
- **stall ratio**: sum of handoff times / sum of E2E. A handoff delays its request for its whole duration; KV that moves
  while the prompt is still being computed delays nothing and is not part of the handoff."""


def section(profile: Mapping[str, Any]) -> str:
    """A row for each cell and one for all cells, which has no times; "" for a run without handoffs.

    Copy rates are given if the connector has its own clock. Rates over whole transfers are given only if no transfer
    began before its prompt was computed: its pauses would be those of the prefill.
    """
    if not profile:
        return ""
    cells = {**profile["cells"], "all": profile["overall"]} if len(profile["cells"]) > 1 else profile["cells"]
    own_clock, over_transfers = _rates(profile)
    rows = []
    for name, cell in cells.items():
        size = cell["bytes_a_handoff"].get("mean")
        # A median over short and long prompts together describes neither.
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
    note = "Times are p50 / p95. The decode engine cannot continue a request before its handoff has ended."
    early = profile["overall"]["overlapped"]
    if early:
        note += (
            f" {number(early)} of {number(profile['overall']['ok'])} transfers began before their prompt was computed "
            "(transfer.overlap=on), so they lasted as long as the rest of the prefill and mostly waited for the next "
            "blocks. The cost of such a transfer is its copy time; the delay it causes is its handoff time."
        )
    columns = "l" + "r" * (len(header) - 1)
    return f"## KV transfer\n\n{table(header, rows, columns)}\n\n{note}{_longest_queues(profile['overall'])}"


def how_to_read(profile: Mapping[str, Any]) -> str:
    """Definitions of the terms that `section` uses."""
    own_clock, over_transfers = _rates(profile)
    pauses = ", including pauses while the rest of the prompt is computed." if profile["overall"]["overlapped"] else "."
    return "\n".join([HOW_TO_READ + pauses, *[OF_COPY] * own_clock, *[OF_SPAN] * over_transfers, STALL])


def _rates(profile: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether copy rates can be given, and rates over whole transfers."""
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
        f" Largest number of requests waiting in wp1 for a place in an engine: {', '.join(lengths)}. Waiting inside an "
        "engine is not counted here, but in **queue**."
    )
