"""What fits into an engine's memory and what a second pool costs in it, as part of a run's page. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from wp1.analysis.base.markdown import Unit, in_unit, ms, number, size_in, table, unit_of
from wp1.analysis.memory import capacity
from wp1.analysis.memory.figures import PARTS

NAMES = dict(PARTS)


def fits(pools: Sequence[capacity.Pool], found: Sequence[capacity.Fit], unit: Unit) -> str:
    """What the pools hold: the longest request, and requests of each length at once. unit: of the tables beside it."""
    if not pools:
        return (
            "### What fits\n\nNot calculated: the KV of a request is not a fixed number of bytes a token in this model "
            "(windows, or recurrent states beside the KV), or its bytes are not known."
        )
    header = [
        "engine", f"KV pool, {unit[0]}", f"left by the parts, {unit[0]}", "longest request by bytes",
        "by the engine's blocks", "model.max_len",
    ]  # fmt: skip
    lines = [
        [
            f"{pool.arm} {pool.engine}", in_unit(pool.kv_bytes, unit), in_unit(pool.left, unit),
            number(pool.longest_predicted), number(pool.longest_by_blocks), number(pool.max_len),
        ]
        for pool in pools
    ]  # fmt: skip
    at_once = [
        [
            f"{fit.arm} {fit.engine}", number(fit.tokens), number(fit.predicted), number(fit.by_blocks),
            number(min(fit.by_blocks, fit.most)), fit.why,
        ]
        for fit in found
    ]  # fmt: skip
    note = (
        "Tokens are of prompt and output. By bytes: the pool as measured / calculated bytes of a token; by blocks: the "
        "engine's own count, whole blocks a request, one block kept by vLLM. Left by the parts: what vLLM allows "
        "itself on the GPU less all measured parts but KV, where it chose the pool's size."
    )
    return (
        f"### What fits\n\n{table(header, _alike(lines), 'lrrrrr')}\n\nRequests of one length at once:\n\n"
        + table(["engine", "tokens", "by bytes", "by blocks", "with max_num_seqs", ""], _alike(at_once), "lrrrrl")
        + f"\n\n{note}"
    )


def _alike(lines: list[list[Any]]) -> list[list[Any]]:
    """Rows that differ in their engine alone as one."""
    engines: dict[tuple[Any, ...], list[str]] = {}
    for engine, *rest in lines:
        engines.setdefault(tuple(rest), []).append(engine)
    return [[", ".join(names), *rest] for rest, names in engines.items()]


def price(found: Mapping[str, Any]) -> str:
    """What a second pool takes beyond one, and how long a prompt takes room in both; from `capacity.price_of`."""
    agg, disagg = found["arms"]
    unit = unit_of(found["kv_pool"].values())
    lines = [
        [f"{NAMES[name]}{', a second copy' if name == 'weights' else ''}", in_unit(size, unit)]
        for name, size in found["extra"].items()
        if size > 0
    ]
    lines += [[f"KV pool of {arm}, all engines", in_unit(found["kv_pool"][arm], unit)] for arm in (agg, disagg)]
    lines.append(["of which requests can decode in", in_unit(found["kv_pool_decode"], unit)])
    return (
        "### What disaggregation costs in memory\n\n"
        f"{_engines(found)}; at {found['prompt_len']:,} tokens, {unit[0]}:\n\n"
        + table([f"{disagg} beyond {agg}", unit[0]], lines, "lr")
        + f"\n\n{_held(found, unit)}"
    )


def _engines(found: Mapping[str, Any]) -> str:
    """How many, and on how many devices, as a figure of two devices is none of one."""
    agg, disagg = found["arms"]
    counts = [
        f"{found['engines'][arm]} on {found['devices'][arm]} device{'s' * (found['devices'][arm] > 1)} ({arm})"
        for arm in (disagg, agg)
    ]
    return f"Engines: {' against '.join(counts)}"


def _held(found: Mapping[str, Any], unit: Unit) -> str:
    """How long a prompt's KV takes room in two pools: in words at the longest prompt, and by length."""
    spans = ("decode_ms", "early_ms", "prefill_ms")
    lines = [
        [number(row["prompt_len"]), in_unit(row["bytes"], unit), *(ms(row[span]) for span in spans)]
        for row in found["kv_held"]
    ]
    header = [
        "prompt tokens", f"KV in each pool, {unit[0]}", "decode pool, before its KV is there, ms",
        "of that, before the prompt is computed, ms", "prefill pool, after the prompt is computed, ms",
    ]  # fmt: skip
    note = (
        "A decode pool gives a prompt all its blocks when it is asked for it; an idle one gives a short prompt "
        "(transfer.at_once_mib) its blocks only once it is computed, so that its row says too much. A prefill pool "
        "gives them chunk by chunk as it computes, and keeps them until they have moved. From the account of handoffs: "
        "asked, end of the prefill, end of the transfer; means over the requests of a length."
    )
    return f"{_held_in_words(found)}\n\n{table(header, lines, 'rrrrr')}\n\n{note}".lstrip()


def _held_in_words(found: Mapping[str, Any]) -> str:
    """At the longest prompt that has times; "" where none has."""
    known = [row for row in found["kv_held"] if row["both_ms"] is not None]
    if not known:
        return ""
    row, disagg = known[-1], found["arms"][1]
    size = size_in(row["bytes"], unit_of([row["bytes"]]))
    at = f"At {number(row['prompt_len'])} tokens"
    shared = found["devices"][disagg] < found["engines"][disagg]
    where = ", on the same device" if shared else ", each on its own device"
    if row["early_ms"]:
        return (
            f"{at} the decode pool holds {size} of blocks for {ms(row['decode_ms'])} ms before their KV is there, and "
            f"nobody else can use them: for {ms(row['early_ms'])} ms of it the prompt is still being computed, as the "
            f"decode pool is asked that early so that blocks can move meanwhile (transfer.overlap=on). Both pools hold "
            f"all of it for {ms(row['both_ms'])} ms{where}, from the end of the prefill until it has moved."
        )
    return (
        f"{at} the prefill pool holds {size} of KV for {ms(row['prefill_ms'])} ms after the prompt is computed. The "
        "decode pool was asked after that, so it holds none while the prompt is computed, and then as much for "
        f"{ms(row['decode_ms'])} ms before its KV is there: for {ms(row['both_ms'])} ms both pools hold all of "
        f"it{where}."
    )
