"""The report's section on the devices while requests were measured. Pure."""

from collections.abc import Mapping
from typing import Any

from wp1.analysis.base.markdown import fixed, short, table, text


def section(profile: Mapping[str, Any] | None) -> str:
    """The section, from `profiling.device`: a row per device, idle apart, energy, and notes; "" without figures."""
    if not profile:
        return ""
    notes = [f"- {text(note)}." for note in profile.get("notes", [])]
    parts = ["## Devices, while requests were measured"]
    if profile["devices"]:
        rows = []
        for name, found in profile["devices"].items():
            idle = found.get("idle")
            rows += [_row(name, found)] + ([_row(f"{name}, idle", idle)] if idle else [])
        host = any(d["kind"] == "host" for d in profile["devices"].values())
        note = (
            "No GPU was used: **host** shows the engines' resident memory and CPU load (100 % is one core)."
            if host
            else "GPU memory includes the KV pool that vLLM reserves when it starts. **idle**: the engines were up and "
            "had no requests."
        )
        energy = profile.get("energy")
        if energy and energy["joules_per_output_token"] is not None:
            note += (
                f" Energy while requests were in flight: {energy['joules']:,.0f} J, "
                f"{short(energy['joules_per_output_token'])} J per output token "
                f"(from NVML's {_source(energy['from'])})."
            )
        header = ["device", "GiB mean", "GiB peak", "load % mean", "load % peak", "W mean", "W peak"]
        parts += [table(header, rows, "lrrrrrr"), note]
    parts += ["\n".join(notes)] if notes else []
    return "\n\n".join(parts) if len(parts) > 1 else ""


def _source(source: str) -> str:
    """`counter`, `power` or both, in words."""
    return source.replace("counter", "energy counter").replace("power", "power samples")


def _row(name: str, found: dict[str, Any]) -> list[str | None]:
    keys = (f"{key}_{end}" for key in ("memory_gib", "utilisation_percent", "power_w") for end in ("mean", "peak"))
    return [name, *(fixed(found[key]) for key in keys)]
