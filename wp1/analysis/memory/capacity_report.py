"""The report's subsections on what fits into memory and on what disaggregation costs in memory. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

from wp1.analysis.base.markdown import Unit, in_unit, ms, number, size_in, table, unit_of
from wp1.analysis.memory import capacity
from wp1.analysis.memory.figures import PARTS

NAMES = dict(PARTS)


def fits(pools: Sequence[capacity.Pool], found: Sequence[capacity.Fit], unit: Unit) -> str:
    """What the pools hold: the longest request, and how many requests of each length. unit: of the other tables."""
    if not pools:
        return (
            "### What fits\n\nNot calculated: either this model's KV is not a fixed number of bytes per token (sliding "
            "windows, or recurrent states beside the KV), or that number is unknown."
        )
    header = [
        "engine", f"KV pool, {unit[0]}", f"budget left for KV, {unit[0]}", "longest request by bytes",
        "longest request by blocks", "model.max_len",
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
        "Lengths are tokens of prompt and output together. **by bytes**: measured pool / calculated bytes per token. "
        "**by blocks**: from the engine's own block count, with whole blocks per request and without the one that vLLM "
        "keeps for itself. **budget left for KV**: the GPU memory that vLLM allows itself, minus all measured parts "
        "but KV; given only if vLLM chose the pool's size."
    )
    return (
        f"### What fits\n\n{table(header, _alike(lines), 'lrrrrr')}\n\n"
        "How many requests of one length fit at the same time:\n\n"
        + table(["engine", "tokens", "by bytes", "by blocks", "with max_num_seqs", ""], _alike(at_once), "lrrrrl")
        + f"\n\n{note}"
    )


def _alike(lines: list[list[Any]]) -> list[list[Any]]:
    """Merges rows that differ in their engine only."""
    engines: dict[tuple[Any, ...], list[str]] = {}
    for engine, *rest in lines:
        engines.setdefault(tuple(rest), []).append(engine)
    return [[", ".join(names), *rest] for rest, names in engines.items()]


def price(found: Mapping[str, Any]) -> str:
    """What disaggregated serving takes beyond aggregated, and how long a prompt occupies both pools.

    found: from `capacity.price_of`.
    """
    agg, disagg = found["arms"]
    unit = unit_of(found["kv_pool"].values())
    lines = [
        [f"{NAMES[name]}{', a second copy' if name == 'weights' else ''}", in_unit(size, unit)]
        for name, size in found["extra"].items()
        if size > 0
    ]
    lines += [[f"KV pool of {arm}, all engines", in_unit(found["kv_pool"][arm], unit)] for arm in (agg, disagg)]
    lines.append([f"of that, {disagg}'s decode pool", in_unit(found["kv_pool_decode"], unit)])
    return (
        "### What disaggregation costs in memory\n\n"
        f"{_engines(found)}. Prompt of {found['prompt_len']:,} tokens, in {unit[0]}:\n\n"
        + table([f"what {disagg} takes beyond {agg}", unit[0]], lines, "lr")
        + f"\n\n{_held(found, unit)}"
    )


def _engines(found: Mapping[str, Any]) -> str:
    """How many engines on how many devices each arm has: figures of two devices do not compare with those of one."""
    agg, disagg = found["arms"]
    counts = [
        f"{found['engines'][arm]} on {found['devices'][arm]} device{'s' * (found['devices'][arm] > 1)} ({arm})"
        for arm in (disagg, agg)
    ]
    return f"Engines: {' against '.join(counts)}"


def _held(found: Mapping[str, Any], unit: Unit) -> str:
    """How long a prompt's KV occupies two pools: as a sentence for the longest prompt, and by length."""
    spans = ("decode_ms", "early_ms", "prefill_ms")
    lines = [
        [number(row["prompt_len"]), in_unit(row["bytes"], unit), *(ms(row[span]) for span in spans)]
        for row in found["kv_held"]
    ]
    header = [
        "prompt tokens", f"KV in each pool, {unit[0]}", "held by the decode pool before the KV has arrived, ms",
        "of that, before the prompt is computed, ms", "held by the prefill pool after the prompt is computed, ms",
    ]  # fmt: skip
    note = (
        "A decode engine allocates all blocks of a prompt when it receives the request. The exception is a short "
        "prompt (transfer.at_once_mib): an idle engine allocates its blocks only once it is computed, so the times in "
        "its row are too long. A prefill engine allocates blocks chunk by chunk as it computes, and keeps them until "
        "they have moved. Times come from handoffs.jsonl (request to the decode engine, end of the prefill, end of "
        "the transfer) and are means over the requests of a length."
    )
    return f"{_held_in_words(found)}\n\n{table(header, lines, 'rrrrr')}\n\n{note}".lstrip()


def _held_in_words(found: Mapping[str, Any]) -> str:
    """Sentences on the longest prompt that has times; "" if none has."""
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
            f"{at}, the decode pool holds {size} of blocks for {ms(row['decode_ms'])} ms before their KV has arrived; "
            f"no other request can use them. For {ms(row['early_ms'])} ms of that time the prompt is still being "
            "computed: the decode engine gets the request early so that blocks can move meanwhile "
            f"(transfer.overlap=on). Both pools hold all of the KV for {ms(row['both_ms'])} ms{where}, from the end of "
            "the prefill to the end of the transfer."
        )
    return (
        f"{at}, the prefill pool holds {size} of KV for {ms(row['prefill_ms'])} ms after the prompt is computed. The "
        "decode engine gets the request only then, so its pool holds nothing while the prompt is computed, and "
        f"afterwards the same amount for {ms(row['decode_ms'])} ms before the KV has arrived. Both pools hold all of "
        f"it for {ms(row['both_ms'])} ms{where}."
    )
