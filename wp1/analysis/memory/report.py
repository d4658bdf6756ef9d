"""The report's section on memory: sentences, tables by part, what fits, what disaggregation costs. Pure."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from wp1.analysis.base import cells, metrics
from wp1.analysis.base.markdown import Unit, in_unit, ms, number, percent, size_in, table, text, unit_of
from wp1.analysis.base.run_tables import RunTables
from wp1.analysis.comparison.arms import devices_of
from wp1.analysis.memory import capacity, capacity_report
from wp1.analysis.memory import figures as memory_figures
from wp1.analysis.memory import plots as memory_plots
from wp1.analysis.memory.figures import PARTS, UNEXPLAINED_SHARE, Row

NAMES = dict(PARTS)
CALCULATED = (
    ("weights", "weights", "size of the weight files, or of the architecture's parameters, per GPU"),
    ("kv_in_use", "KV in use, by tokens", "tokens × 2 × layers × KV heads × head size × bytes per element; for latent "
     "attention, tokens × layers × (latent size + rotary size) × bytes per element"),
    ("kv_in_use_blocks", "KV in use, by blocks", "whole blocks × bytes per block"),
    ("kv_reserved", "KV reserved", "the engine's blocks × bytes per block"),
    ("activations", "activations, prefill", "largest chunk × (3 × intermediate size + 2 × hidden size) × bytes per "
     "element; 2 × intermediate size if the MLP has no gate"),
)  # fmt: skip
KEPT_WITHIN_STEP = (
    "Activations exceed the calculated ones for two reasons. On a host, their peak is a peak of resident memory, which "
    "includes memory freed within the step that the C library keeps. And as nothing is compiled there (enforce_eager), "
    "the MLP has one more buffer, between its activation function and the product with its other half."
)
HOW_TO_READ = {
    "host": """\
- **weights**: growth of resident memory while the model was loaded, including copies made by kernels.
- **context and code**: the process with its imports before the engine was created, and libraries' pages.
- **buffers**: growth during the rest of the engine's start, for batches, block tables and the like.
- **transfer**: memory of another engine that is mapped here; it is counted there too.
- **KV in use**: the request's blocks, as counted by the engine's scheduler; **KV reserved, free**: the resident rest of
  the pool.
- **activations, peak**: the most that one step of the model took beyond what was in use before it, from a peak (VmHWM)
  that is reset before each step. Freed memory that the C library keeps is returned before and after each cell
  (malloc_trim).
- **unexplained**: the process's peak resident memory minus all parts; more than 5 % either way is set in bold.""",
    "gpu": """\
- **weights**, **KV in use**, **KV reserved, free**: bytes of the tensors; the engine's scheduler counts the blocks in
  use.
- **buffers**: what else torch had allocated when the request ended: batches, block tables, rotary tables.
- **CUDA graphs**: the memory pools of the captured graphs.
- **activations, peak**: the most that one step of the model allocated beyond what was in use before it; the peak is
  reset before each step.
- **kept by the allocator**: what torch has reserved beyond all parts above: fragments, and what start-up needed.
- **context and code**: the process's GPU memory outside torch once the engine was up: CUDA's context, kernels,
  communicators. **transfer**: growth when the KV cache was registered with the connector.
- **unexplained**: what the device reports for the process minus all parts; more than 2 % either way is set in bold.""",
}


def section(
    run: RunTables, folder: Path | None, requests: pl.DataFrame, config: Mapping[str, Any], metadata: Mapping[str, Any]
) -> str:
    """The section, or "" if no notes were taken. Its plots go to `folder`; None makes none."""
    rows = memory_figures.rows_of(run.notes, requests, metadata)
    if not rows:
        return ""
    arms = list(dict.fromkeys(row.arm for row in rows))
    by_nvml = next((gpu["memory_gib"] for gpu in metadata["hardware"]["gpus"]), None)
    devices = devices_of(metadata["pools"], arms)
    pools = capacity.pools_of(rows, metadata)
    price = capacity.price_of(rows, run.handoffs, metadata)
    parts = ["## Where memory goes", "\n\n".join(words(rows, arm, devices[arm], by_nvml) for arm in arms)]
    if folder is not None:
        for caption, file in memory_plots.by_length(folder, rows, metadata):
            parts += [f"![{caption}]({folder.name}/{file.name})", f"*{caption}*"]
    parts += [_parts_table(rows, arm) for arm in arms]
    if left_out := memory_figures.not_measured(metadata, requests):
        lines = [[number(length), text(why)] for length, why in left_out]
        parts.append(table(["prompt tokens", "why not measured"], lines, "rl"))
    parts.append(_beside_calculated(rows))
    fits = capacity.fits_of(pools, rows, metadata, config["workload"]["output_len"])
    parts.append(capacity_report.fits(pools, fits, unit_of(row.total for row in rows)))
    if price:
        parts.append(capacity_report.price(price))
    if memory_figures.one_each(config, requests):
        parts.append(_served(requests, arms))
    parts.append("### How to read this\n\n" + HOW_TO_READ[rows[0].kind])
    return "\n\n".join(part for part in parts if part)


# Latencies of whole requests; their parts do not matter here.
SERVED = ("ttft_ms", "e2e_ms")


def _served(requests: pl.DataFrame, arms: Sequence[str]) -> str:
    """What the requests took around which memory was measured: one each, which is not a measurement of speed."""
    answered = requests.filter(~pl.col("warmup") & (pl.col("status") == "ok"))
    took = {(row["arm"], row["cell"]): row for row in answered.iter_rows(named=True)}
    lines = [
        [
            number(cells.parse(cell).prompt_len or 0),
            *(ms(took.get((arm, cell), {}).get(column)) for arm in arms for column in SERVED),
        ]
        for cell in cells.ordered(answered["cell"])
    ]
    header = ["prompt tokens", *(f"{arm}, {metrics.title_of(key)} ms" for arm in arms for key in SERVED)]
    return (
        "### What the requests took\n\n"
        "One request per length and arm (n = 1), sent to measure memory, not speed. E1 and E3 measure what prompt "
        "length and disaggregation cost in time.\n\n" + table(header, lines, "r" * len(header))
    )


def words(rows: Sequence[Row], arm: str, devices: int, by_nvml: float | None = None) -> str:
    """An arm's memory at its longest prompt and its largest part, in a few sentences. devices: how many the arm uses.

    by_nvml: GiB of a device as counted by NVML, which includes what the driver keeps from CUDA.
    """
    of_arm = [row for row in rows if row.arm == arm]
    longest = max(row.prompt_len for row in of_arm)
    at = [row for row in of_arm if row.prompt_len == longest]
    sums = {name: memory_figures.together(at, name) for name, _ in PARTS}
    total, limit = sum(sums.values()), at[0].limit
    kv_pool = sums.pop("kv_in_use") + sums.pop("kv_free")
    largest, size = max([*sums.items(), ("kv", kv_pool)], key=lambda pair: pair[1])
    unit = unit_of(row.total for row in at)
    counted = "" if by_nvml is None else f" (as seen by CUDA; NVML reports {by_nvml:,.1f} GiB)"
    where = (
        f"the device's {size_in(limit, unit)}{counted}"
        if devices == 1
        else f"{devices} devices with {size_in(limit, unit)} each{counted}"
    )
    engines = len({row.engine for row in at})
    of = f"{engines} engines hold" if engines > 1 else "the engine holds"
    name = "the KV pool" if largest == "kv" else NAMES[largest]
    in_use = sum(row.parts["kv_in_use"] for row in at)
    fills = f"{size_in(in_use, unit)} ({percent(in_use / kv_pool)})" if kv_pool else ""
    kv = f" The request fills {fills} of the KV pool{'s' * (engines > 1)}." if kv_pool else ""
    activations = max(row.parts["activations"] for row in at)
    return (
        f"**{arm}**, prompt of {longest:,} tokens: {of} {size_in(total, unit)} of {where}. The largest part is "
        f"**{name}** with {size_in(size, unit)} ({percent(size / total)}).{kv} Activations peak at "
        f"{size_in(activations, unit)}."
    )


def _parts_table(rows: Sequence[Row], arm: str) -> str:
    of_arm = [row for row in rows if row.arm == arm]
    unit = unit_of(row.total for row in of_arm)
    shown = [name for name, _ in PARTS if name == "unexplained" or any(row.parts[name] for row in of_arm)]
    header = [
        "engine", "prompt tokens", *(NAMES[name] for name in shown), "reported", "unexplained %",
    ]  # fmt: skip
    lines = []
    for row in of_arm:
        share = row.unexplained_share
        unexplained = None if share is None else percent(share) if row.adds_up else f"**{percent(share)}**"
        lines.append(
            [
                _worker(row),
                number(row.prompt_len),
                *(in_unit(row.parts[name], unit) for name in shown),
                in_unit(row.reported, unit),
                unexplained,
            ]
        )
    sources = sorted({row.source for row in of_arm})
    beyond = [row for row in of_arm if not row.adds_up]
    tolerance = percent(UNEXPLAINED_SHARE[of_arm[0].kind])
    verdict = (
        f"The parts add up to the reported memory within {tolerance} in every row."
        if not beyond
        else f"{len(beyond)} of {len(of_arm)} rows have more than {tolerance} unexplained."
    )
    core = max((row.core_process or 0 for row in of_arm), default=0)
    also = f" Each engine's scheduler process takes up to another {size_in(core, unit)} of host memory." if core else ""
    return f"**{arm}**, in {unit[0]}; reported: {', '.join(sources)}. {verdict}{also}\n\n" + table(
        header, lines, "l" + "r" * (len(header) - 1)
    )


def _worker(row: Row) -> str:
    return row.engine if not row.rank else f"{row.engine}, rank {row.rank}"


def _beside_calculated(rows: Sequence[Row]) -> str:
    """Measured, calculated and their difference: once per engine if independent of the prompt, else by length."""
    unit = unit_of(row.total for row in rows)
    engines = {(row.arm, row.engine, row.rank): row for row in rows}
    constant = [
        [_named(row), *_compared(row, "weights", unit), *_compared(row, "kv_reserved", unit)]
        for row in engines.values()
    ]
    by_length = [
        [
            _named(row),
            number(row.prompt_len),
            *_compared(row, "kv_in_use", unit),
            *_compared(row, "kv_in_use_blocks", unit)[1:],
            f"{row.blocks:,} / {row.calculated_blocks:,}" if row.calculated_blocks else f"{row.blocks:,}",
            *_compared(row, "activations", unit),
        ]
        for row in rows
    ]
    how = "\n".join(f"- **{title}**: {words}" for _, title, words in CALCULATED)
    parts = [
        f"### Measured and calculated, {unit[0]}",
        table(
            ["engine", "weights", "calculated", "difference", "KV reserved", "calculated", "difference"],
            constant,
            "lrrrrrr",
        ),
        table(
            [
                "engine", "prompt tokens", "KV in use", "by tokens", "difference", "by blocks", "difference",
                "blocks: engine / calculated", "activations", "calculated", "difference",
            ],
            by_length,
            "lrrrrrrrrrr",
        ),
        f"How these parts are calculated:\n\n{how}",
        _copies(list(engines.values()), unit),
        KEPT_WITHIN_STEP if any(row.kept_within_step for row in rows) else "",
        _vllm_says(list(engines.values()), unit),
    ]  # fmt: skip
    return "\n\n".join(part for part in parts if part)


def _copies(rows: Sequence[Row], unit: Unit) -> str:
    """Why weights on a CPU take more than calculated, if copies of the matrices explain it; else ""."""
    copied = [row for row in rows if row.copied]
    if not copied:
        return ""
    whose = "" if len(copied) == len(rows) else f" of {', '.join(map(_named, copied))}"
    beyond = max(row.parts["weights"] - row.calculated["weights"] for row in copied)
    return (
        f"Weights{whose} take up to {size_in(beyond, unit)} more than calculated, of which 2 × "
        f"{size_in(copied[0].matrix or 0, unit)} are for the matrices (vocabulary × hidden size) of the embedding and "
        "the output layer. vLLM packs every matrix for its CPU kernels and drops the original, but for these two "
        "layers it keeps the original and adds a packed copy for each, even if they share one matrix."
    )


def _named(row: Row) -> str:
    return f"{row.arm} {_worker(row)}"


def _compared(row: Row, name: str, unit: Unit) -> list[str | None]:
    """Measured, calculated, difference in percent; dashes if nothing was calculated."""
    calculated = row.calculated.get(name)
    if calculated is None:
        return [None, None, None]
    value = memory_figures.measured(row, name)
    ratio = f"{(value - calculated) / calculated:+.1%}".replace("%", " %") if calculated else None
    return [in_unit(value, unit), in_unit(calculated, unit), ratio]


def _vllm_says(rows: Sequence[Row], unit: Unit) -> str:
    """vLLM's own memory profile at its start; "" if it made none."""
    names = list(dict.fromkeys(name for row in rows for name in row.vllm))
    if not names:
        return ""
    lines = [[_named(row), *(in_unit(row.vllm.get(name), unit) for name in names)] for row in rows]
    header = ["engine", *(f"`{name}`" for name in names)]
    arms = [row.arm for row in rows if row.kind == "gpu"]
    beside = (
        " It is based on the device's free memory, so an engine that shares its device also counts what another one "
        "takes while it starts."
    ) * (len(arms) > len(set(arms)))
    return (
        f"vLLM's own memory profile at its start, under vLLM's names, in {unit[0]}.{beside}\n\n"
        f"{table(header, lines, 'l' + 'r' * len(names))}"
    )
