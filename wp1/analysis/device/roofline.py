"""How close a cell came to its devices' peaks: MFU of prefill, MBU of decode, and what limits each phase. Pure.

MFU (Chowdhery et al., PaLM, 2022, appendix B) is useful FLOP/s over the device's peak. MBU (Databricks, LLM Inference
Performance Engineering, 2023) is the bytes/s that decoding has to move, over the device's peak. A phase's time is the
time in which any request was in it (union of intervals), so time shared by several requests counts once.

Work is counted once, for the engine that did it. Prompt tokens from the prefix cache add no FLOPs to a prefill, but the
other tokens attend to them and decoding reads their KV. A disaggregated request's prefill belongs to its prefill
engine. If the decode engine gives the first token (scheduler.first_token=decode), it computes the prompt's last token
again, which is one of its steps. Work repeated after a preemption is not useful and not counted; its time is.

What limits a phase follows the roofline model (Williams et al., 2009): compute or memory, whichever of its FLOPs and
its bytes would take longer at the peaks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from wp1.analysis.base.markdown import share
from wp1.model.architecture import Architecture
from wp1.stats import samples, spans

# A phase that uses less than this share of both peaks is limited by something else.
LITTLE = 1 / 3
# Decode that runs beside prefills for at least this share of its time is reported so.
SHARED = 0.25
LIMITED = (
    "**limited by** (roofline): a phase is compute-bound or memory-bound, whichever of its FLOPs and its bytes would "
    "take longer at the device's peaks; it is overhead-bound if both would take less than a third of its time."
)


@dataclass(frozen=True)
class Device:
    """The identical devices that a phase runs on, with the peaks of one."""

    flops: float  # FLOP/s
    bytes_per_s: float
    prefill: int  # devices that do prefill
    decode: int


def device_of(metadata: Mapping[str, Any], arm: str) -> Device | None:
    """The device, from run_metadata.json; None if its peaks are unknown."""
    peaks = metadata.get("peaks")
    if not peaks:
        return None
    counts = {phase: devices_of(metadata["pools"], arm, phase) for phase in ("prefill", "decode")}
    return Device(peaks["flops"], peaks["bytes_per_s"], **counts)


def devices_of(pools: Sequence[Mapping[str, Any]], arm: str, phase: str | None = None) -> int:
    """Number of GPUs of an arm, or of its pools that do a phase; each counts once, however many engines share it.

    1 for a host without a GPU.
    """
    of_arm = [pool for pool in pools if pool.get("arm") == arm and (phase is None or phase in pool["phases"])]
    engines = [engine for pool in of_arm for engine in pool["engines"]]
    return len({device for engine in engines for device in engine["devices"] if device.startswith("cuda")}) or 1


def shape_of(metadata: Mapping[str, Any]) -> tuple[Architecture | None, str | None]:
    """The model's shape, or None and the reason why its FLOPs are unknown."""
    model = metadata["model"]
    described = model.get("shape")
    if not described:
        return None, model.get("why_no_shape") or "the model's shape is not known"
    shape = Architecture(**described)
    if shape.unlike is not None:
        return None, f"the formulas do not hold for {shape.unlike}"
    engines = [engine for pool in metadata.get("pools", ()) for engine in pool["engines"]]
    for engine in engines:
        token_bytes = engine["settings"].get("kv_token_bytes")
        if token_bytes is not None and token_bytes != shape.kv_bytes:
            return None, (
                f"engine {engine['name']} keeps {token_bytes:,} bytes of KV per token, but the model's configuration "
                f"gives {shape.kv_bytes:,}"
            )
    return shape, None


def chunk_of(metadata: Mapping[str, Any], arm: str) -> int | None:
    """Largest number of tokens in one step of the arm's prefill engines; None if unknown."""
    pools = [pool for pool in metadata["pools"] if pool.get("arm") == arm and "prefill" in pool["phases"]]
    engines = [engine for pool in pools for engine in pool["engines"]]
    return next((engine["settings"].get("max_num_batched_tokens") for engine in engines), None)


def computed() -> pl.Expr:
    """Prompt tokens that a request's prefill computed: all but those from the prefix cache."""
    return pl.col("prompt_tokens") - pl.col("cached_tokens").fill_null(0)


def why_not(metadata: Mapping[str, Any]) -> str | None:
    """Reason why MFU and MBU are unavailable, or None."""
    shape, reason = shape_of(metadata)
    if shape is None:
        return reason
    if not metadata.get("peaks"):
        return "no peak is known for this device: `python -m wp1.peaks` measures it for later runs"
    return None


def note(rows: Sequence[Mapping[str, Any]], why: str | None) -> str:
    """A section's note on MFU and MBU: why there are none, or that some exceed 100 %; "" if all is well."""
    if why:
        return f" No MFU and MBU: {why}."
    if any(row[key] and row[key]["value"] > 1 for row in rows for key in ("mfu", "mbu")):
        return (
            " **More than 100 % of a peak** is impossible: either the peak was measured too low, for instance beside "
            "other work, or the data came from a cache. `python -m wp1.peaks` measures the peaks again for later runs."
        )
    return ""


def roofline(
    requests: pl.DataFrame, shape: Architecture | None, device: Device | None, chunk: int | None = None
) -> dict[str, Any]:
    """Figures of one cell of an arm, from its answered requests (`tables.requests`), with intervals over repeats.

    mfu, mbu: shares of the peaks, null if `device` or `shape` is. Also achieved FLOP/s and bytes/s, `batch` (mean
    number of requests in decode at a time), `shared` (share of decode's time in which the same engine also did a
    prefill), and `prefill_bound` and `decode_bound` (`bound`). chunk: largest number of tokens in a prefill step.
    """
    repeats = [_phases(rows, shape, chunk) for _, rows in requests.group_by("repeat", maintain_order=True)]

    def over(above: str, below: str, peak: float | None = 1.0) -> dict[str, Any] | None:
        if peak is None:
            return None
        return samples.ratio([r[above] for r in repeats], [r[below] * peak for r in repeats])

    flops_peak = None if device is None else device.flops * device.prefill
    bytes_peak = None if device is None else device.bytes_per_s * device.decode
    total = {key: sum(r[key] for r in repeats) for key in (repeats[0] if repeats else ())}
    found: dict[str, Any] = {
        "mfu": over("prefill_flops", "prefill_s", flops_peak) if shape else None,
        "mbu": over("decode_bytes", "decode_s", bytes_peak) if shape else None,
        "prefill_flops_per_s": over("prefill_flops", "prefill_s") if shape else None,
        "decode_bytes_per_s": over("decode_bytes", "decode_s") if shape else None,
        "batch": over("decoding_s", "decode_s"),
        "shared": over("shared_s", "decode_s"),
        "prefill_bound": None,
        "decode_bound": None,
    }
    if total and shape and device:
        found["prefill_bound"] = bound(
            total["prefill_flops"] / device.flops / device.prefill,
            total["prefill_bytes"] / device.bytes_per_s / device.prefill,
            total["prefill_s"],
        )
        found["decode_bound"] = bound(
            total["decode_flops"] / device.flops / device.decode,
            total["decode_bytes"] / device.bytes_per_s / device.decode,
            total["decode_s"],
        )
    return found


def bound(compute_s: float, memory_s: float, took_s: float) -> str | None:
    """What limits a phase: "compute", "memory" or "neither"; None if it took no time.

    compute_s, memory_s: seconds that its FLOPs and its bytes would take at the peaks. took_s: seconds it took.
    """
    if took_s <= 0:
        return None
    if max(compute_s, memory_s) / took_s < LITTLE:
        return "neither"
    return "compute" if compute_s >= memory_s else "memory"


def words(found: Mapping[str, Any], queue_share: float | None = None) -> str:
    """What limits a cell, as phrases. queue_share: share of mean TTFT spent queueing before the prefill."""
    phrases = []
    if queue_share is not None and queue_share > 0.5:
        phrases.append(f"{share(queue_share)} of TTFT is queueing")
    for phase, unit, key in (("prefill", "MFU", "mfu"), ("decode", "MBU", "mbu")):
        roof, figure, shared = found.get(f"{phase}_bound"), found.get(key), found.get("shared")
        if roof is None or figure is None:
            continue
        use = f"{unit} {share(figure['value'])}"
        if phase == "decode" and shared and shared["value"] >= SHARED and roof != "memory":
            phrases.append(f"decode runs beside prefills for {share(shared['value'])} of its time ({use})")
        else:
            phrases.append(f"{phase} is {'overhead' if roof == 'neither' else roof}-bound ({use})")
    return "; ".join(phrases)


def _phases(requests: pl.DataFrame, shape: Architecture | None, chunk: int | None) -> dict[str, float]:
    """Seconds, FLOPs and bytes of both phases of one repeat."""
    rows = requests.with_columns(t_decodable=pl.max_horizontal("t_decode_scheduled", "t_engine_first_token"))
    prefills = rows.drop_nulls(["t_scheduled", "t_engine_first_token", "prompt_tokens"])
    decodes = rows.drop_nulls(["t_decodable", "t_engine_last_token", "prompt_tokens"]).filter(
        pl.col("output_tokens") > 1
    )
    sums = ("prefill_flops", "prefill_bytes", "decode_flops", "decode_bytes", "decoding_s", "shared_s")
    found: dict[str, float] = dict.fromkeys(sums, 0.0)
    of_prefill = _by_engine(prefills, "prefill_engine", "t_scheduled", "t_engine_first_token")
    of_decode = _by_engine(decodes, "decode_engine", "t_decodable", "t_engine_last_token")
    found["prefill_s"] = spans.length(spans.merged(list(of_prefill.values())))
    found["decode_s"] = spans.length(spans.merged(list(of_decode.values())))
    for engine, intervals in of_decode.items():
        found["shared_s"] += spans.overlap(
            spans.merged([intervals]), spans.merged([of_prefill.get(engine, np.empty((0, 2)))])
        )
    if shape is not None:
        for tokens, cached, likelihood, count in _alike(prefills).iter_rows():
            logits = tokens - cached if likelihood else 1
            found["prefill_flops"] += shape.prefill_flops(tokens, cached, logits) * count
            found["prefill_bytes"] += shape.prefill_bytes(tokens, chunk, cached) * count
    for (engine,), of_engine in decodes.group_by("decode_engine", maintain_order=True):
        intervals = of_decode[str(engine)]
        together = float((intervals[:, 1] - intervals[:, 0]).sum())
        found["decoding_s"] += together
        if shape is not None:
            gaps = (of_engine["output_tokens"] - 1).to_numpy().astype(float)
            again = _again(of_engine)
            steps = gaps + again
            contexts = float((of_engine["prompt_tokens"].to_numpy() * steps + gaps * (gaps + 1) / 2).sum())
            batch = max(1.0, together / max(spans.length(spans.merged([intervals])), 1e-9))
            found["decode_flops"] += shape.decode_flops(contexts, int(steps.sum()))
            found["decode_bytes"] += shape.decode_bytes(contexts, int(steps.sum()), batch)
    return found


def _alike(prefills: pl.DataFrame) -> pl.DataFrame:
    """Prompt tokens, cached tokens, whether log-likelihoods were asked for, and the number of such requests."""
    asked = pl.col("nll_window").is_not_null() if "nll_window" in prefills.columns else pl.lit(False)
    columns = [pl.col("prompt_tokens"), pl.col("cached_tokens").fill_null(0), asked.alias("likelihood")]
    return prefills.select(columns).group_by(pl.all(), maintain_order=True).len()


def _again(decodes: pl.DataFrame) -> np.ndarray:
    """Extra decode steps of each request: 1.0 if the decode engine also gave the first token, else 0.0."""
    if "first_by_decode" not in decodes.columns:
        return np.zeros(decodes.height)
    return decodes["first_by_decode"].fill_null(False).to_numpy().astype(float)


def _by_engine(rows: pl.DataFrame, engine: str, begin: str, end: str) -> dict[str, np.ndarray]:
    return {
        str(name): part.select(begin, end).to_numpy() for (name,), part in rows.group_by(engine, maintain_order=True)
    }
