"""What a report says of the devices while requests were measured. Pure."""

from collections.abc import Mapping
from typing import Any

from wp1.analysis.base.markdown import fixed, short, table, text


def section(profile: Mapping[str, Any] | None) -> str:
    """From `profiling.device`: a row a device, idle apart, energy, and what could not be sampled; "" without any."""
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
            "No GPU was used: **host** is the engines' resident memory and their CPU load (100 % is one core)."
            if host
            else "Memory in use on the GPU includes the KV pool that vLLM reserves at its start; **idle**: engines up, "
            "and nothing to do."
        )
        energy = profile.get("energy")
        if energy and energy["joules_per_output_token"] is not None:
            note += (
                f" Energy while requests were in flight: {energy['joules']:,.0f} J, "
                f"{short(energy['joules_per_output_token'])} J an output token (from NVML's {energy['from']})."
            )
        header = ["device", "GiB mean", "GiB peak", "load % mean", "load % peak", "W mean", "W peak"]
        parts += [table(header, rows, "lrrrrrr"), note]
    parts += ["\n".join(notes)] if notes else []
    return "\n\n".join(parts) if len(parts) > 1 else ""


def _row(name: str, found: dict[str, Any]) -> list[str | None]:
    keys = (f"{key}_{end}" for key in ("memory_gib", "utilisation_percent", "power_w") for end in ("mean", "peak"))
    return [name, *(fixed(found[key]) for key in keys)]
