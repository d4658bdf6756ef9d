"""make bench-transfer: the KV cache from engine to engine by each connector, beside a plain copy of the same bytes.

Two real engines for each connector, one after the other in one run, and the same prompts through them one at a time,
with random weights: tokens mean nothing here, bytes and times are real. A transfer's rate is its bytes by the time that
the connector says it took: for ipc the device's clock around the copy, for NIXL from posting to its end. The plain copy
is of as many bytes, by torch, in a process of its own: gathered by rows of 64 KiB where both engines are on one device,
in one piece from GPU to GPU where they are not (scheduler.devices says; `[0,0]` has them share one of several).

What a user waits for is the second table: the decode engine's first token less the end of prefill, and its parts.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

from wp1 import hardware, schema
from wp1.analysis import style
from wp1.analysis.report import table
from wp1.console import Screen, output_to
from wp1.identity import versions
from wp1.main import CONF
from wp1.plan import plan
from wp1.records import Event, Handoff, Request, RequestRecord, new_record
from wp1.serving import models
from wp1.serving.engines import make_scheduler
from wp1.serving.guard import ProcessGuard
from wp1.workload.prompts import derive_seed, random_token_ids

TUNED = "backend.engine.block_size=128"
VARIANTS = {
    "ipc": ["transfer=ipc", "transfer.overlap=off"],
    "ipc, overlap": ["transfer=ipc"],
    "NIXL push": ["transfer=nixl_push"],
    "NIXL pull": ["transfer=nixl_pull"],
    "ipc, 128": ["transfer=ipc", "transfer.overlap=off", TUNED],
    "NIXL push, 128": ["transfer=nixl_push", TUNED],
    "NIXL pull, 128": ["transfer=nixl_pull", TUNED],
    "NIXL push, layers": ["transfer=nixl_push", TUNED, "transfer.extra.enable_cross_layers_blocks=True"],
    "NIXL pull, layers": ["transfer=nixl_pull", TUNED, "transfer.extra.enable_cross_layers_blocks=True"],
}
# On a CPU: the KV bytes of SmolLM2-135M a token, and next to nothing to compute.
THIN = [
    "model.architecture.hidden_size=96",
    "model.architecture.intermediate_size=96",
    "model.architecture.num_hidden_layers=30",
    "model.architecture.num_attention_heads=3",
    "model.architecture.num_key_value_heads=3",
    "model.architecture.head_dim=64",
]
ON_CPU = {"lengths": [256, 1024, 4096], "kv_gib": 0.5, "variants": list(VARIANTS)[:4]}
ON_GPU = {"lengths": [1024, 8192, 32768, 65536], "kv_gib": 14.0, "variants": list(VARIANTS)}


@dataclass(frozen=True)
class Measured:
    """One handoff; times in ms."""

    variant: str
    tokens: int
    bytes: int
    gb_per_s: float
    whole: float  # client's first token less queue and prefill
    there: float  # KV there - prefill done
    scheduled: float  # scheduled - KV there
    token: float  # first token - scheduled


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench-transfer", description=__doc__)
    found = ON_CPU if hardware.device_type() == "cpu" else ON_GPU
    parser.add_argument("--variants", default=";".join(found["variants"]), help="names with ; between")
    parser.add_argument("--lengths", type=int, nargs="+", default=found["lengths"], help="prompt lengths in tokens")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--slow-s", type=float, default=5.0, help="a length whose first handoff takes longer is measured by it alone"
    )
    parser.add_argument("--write", type=Path, help="folder for the page, the plot and the rows")
    parser.add_argument("overrides", nargs="*", help="of the configuration, for every variant")
    words = parser.parse_args()
    rows: list[Measured] = []
    missing: dict[str, str] = {}
    plain: dict[int, list[float]] = {length: [] for length in words.lengths}
    devices: list[str] = []
    with tempfile.TemporaryDirectory() as folder, Screen() as screen:
        for variant in words.variants.split(";"):
            with output_to(Path(folder) / "engine.log"):
                try:
                    devices = asyncio.run(_measure(variant, words, found["kv_gib"], Path(folder), screen, rows))
                except KeyboardInterrupt:  # what was measured is worth having
                    missing[variant] = "interrupted"
                    break
                except Exception as error:  # and so are the others
                    missing[variant] = str(error)[:2000] or type(error).__name__
            for length, rate in _plain_copy(words.lengths, rows, devices).items():
                plain[length].append(rate)
    page = _page(rows, plain, words.repeats, devices)
    print(page)
    for variant, reason in missing.items():
        print(f"{variant} was not measured: {reason}")
    if words.write:
        words.write.mkdir(parents=True, exist_ok=True)
        (words.write / "rows.jsonl").write_text("".join(json.dumps(vars(row)) + "\n" for row in rows))
        (words.write / "transfer.md").write_text(page, encoding="utf-8")
        if rows:
            _plot(rows, plain, words.write / "transfer.png")
    if missing:
        raise SystemExit(1)


async def _measure(
    variant: str, words: Any, kv_gib: float, folder: Path, screen: Screen, rows: list[Measured]
) -> list[str]:
    """Adds this variant's rows, and returns the devices of the prefill and of the decode engine."""
    most = max(words.lengths) + 64
    overrides = [
        f"root={folder}", "scheduler=disagg", "scheduler.first_token=decode", "model=llama31_8b_shape",
        f"model.max_len={most}", f"backend.kv_cache_gib={kv_gib}", "backend.engine.max_num_seqs=8",
        *(THIN if hardware.device_type() == "cpu" else []), *VARIANTS[variant], *words.overrides,
    ]  # fmt: skip
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg: Any = schema.resolve(compose("config", list(map(schema.with_plus, overrides))))
    model = models.prepare(cfg)
    handoffs: dict[str, Handoff] = {}

    def write(row: Event) -> None:
        if isinstance(row, Handoff):
            handoffs[row.request_id] = row

    records: list[tuple[int, RequestRecord]] = []
    with ProcessGuard() as guard:
        scheduler = make_scheduler(cfg, plan(cfg)[0], model, folder / "engine.log", guard.kill, write)
        with screen.step(f"{variant}: starting two engines"):
            await scheduler.__aenter__()
        try:
            with screen.step(f"{variant}: {len(words.lengths)} x {words.repeats} handoffs"):
                for length in words.lengths:
                    records += [(length, record) for record in await _handoffs(scheduler, model, length, words)]
            devices = [pool["engines"][0]["devices"][0] for pool in scheduler.pools()]
        finally:
            await scheduler.__aexit__(None, None, None)
    for length, record in records:
        rows.append(_measured(variant, length, record, handoffs[record.request_id]))
    return devices


async def _handoffs(scheduler: Any, model: Any, length: int, words: Any) -> list[RequestRecord]:
    """One after the other; the first is for warming up, or is all there is where it is slow."""
    records = []
    for n in range(1 + words.repeats):
        prompt = random_token_ids(length, model.vocab_size, derive_seed("bench", length, n))
        request = Request(f"{length}-{n}", "disagg", f"{length}", 0, prompt, 4, seed=n, ignore_eos=True)
        record = new_record(request, time.monotonic())
        await scheduler.serve(request, record)
        if record.status != "ok":
            raise RuntimeError(f"{length} tokens: {record.error}")
        records.append(record)
        if n == 0 and _span(record.t_engine_first_token, record.t_tokens[0]) > words.slow_s:
            return records
    return records[1:]


def _measured(variant: str, tokens: int, record: RequestRecord, handoff: Handoff) -> Measured:
    seconds = handoff.copy_s or _span(handoff.t_transfer_begin, handoff.t_transfer_end)
    assert handoff.bytes is not None
    prefill = _span(record.t_scheduled, record.t_engine_first_token)
    queue = _span(record.t_intended, record.t_scheduled)
    return Measured(
        variant,
        tokens,
        handoff.bytes,
        handoff.bytes / seconds / 1e9,
        _span(record.t_intended, record.t_tokens[0]) * 1e3 - (prefill + queue) * 1e3,
        _span(handoff.t_prefill_done, handoff.t_transfer_end) * 1e3,
        _span(handoff.t_transfer_end, handoff.t_decode_scheduled) * 1e3,
        _span(handoff.t_decode_scheduled, handoff.t_decode_first_token) * 1e3,
    )


def _span(begin: float | None, end: float | None) -> float:
    assert begin is not None
    assert end is not None
    return end - begin


def _plain_copy(lengths: list[int], rows: list[Measured], devices: list[str]) -> dict[int, float]:
    """GB/s of copying as many bytes as a prompt has, by torch's own means, between the engines' devices."""
    size = {row.tokens: row.bytes for row in rows}
    wanted = [size[length] for length in lengths if length in size]
    if not wanted:
        return {}
    gpus = hardware.gpu_indices()
    ordinals = [gpus.index(int(name.removeprefix("cuda:"))) if gpus else 0 for name in devices]
    words = [sys.executable, "-c", PLAIN, json.dumps([wanted, *ordinals])]
    made = subprocess.run(words, capture_output=True, text=True, check=True)
    return dict(zip([length for length in lengths if length in size], json.loads(made.stdout), strict=True))


PLAIN = """
import json, sys, time, torch
sizes, here, there = json.loads(sys.argv[1])
cuda = torch.cuda.is_available()
torch.set_num_threads(1)
found = []
for size in sizes:
    rows = max(1, size // 65536)
    source = torch.zeros(rows, 65536 // 8, dtype=torch.int64, device=f"cuda:{here}" if cuda else "cpu")
    target = torch.zeros_like(source, device=f"cuda:{there}" if cuda else "cpu")
    order = torch.randperm(rows, device=source.device)
    def copy():
        if here == there:
            torch.index_select(source, 0, order, out=target)
        else:
            target.copy_(source, non_blocking=True)
    times = []
    for _ in range(8):
        if cuda:
            torch.cuda.synchronize(here)
            with torch.cuda.device(here):
                begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                begin.record(); copy(); end.record(); end.synchronize()
            times.append(begin.elapsed_time(end) / 1e3)
        else:
            begin = time.perf_counter()
            copy()
            times.append(time.perf_counter() - begin)
    found.append(rows * 65536 / sorted(times)[len(times) // 2] / 1e9)
print(json.dumps(found))
"""


def _of(rows: list[Measured], variant: str, tokens: int) -> list[Measured]:
    return [row for row in rows if (row.variant, row.tokens) == (variant, tokens)]


def _median(values: Iterator[float] | list[float]) -> float:
    found = list(values)
    return statistics.median(found) if found else float("nan")


def _page(rows: list[Measured], plain: dict[int, list[float]], repeats: int, devices: list[str]) -> str:
    variants = list(dict.fromkeys(row.variant for row in rows))
    lengths = [length for length in plain if plain[length]]
    name = hardware.gpus()[0].name if hardware.gpus() else "CPU"
    apart = len(set(devices)) > 1 and bool(hardware.gpus())
    copy = "copy from GPU to GPU" if apart else "plain gather"
    rates = [
        [
            variant,
            *(
                f"{rate:.2f} ({rate / _median(plain[length]):.3f})"
                for length in lengths
                for rate in [_median(row.gb_per_s for row in _of(rows, variant, length))]
            ),
        ]
        for variant in variants
    ]
    rates.append([copy, *(f"{_median(plain[length]):.2f} (1)" for length in lengths)])
    waits = [
        [
            variant,
            f"{length:,}",
            *(
                f"{_median(getattr(row, part) for row in _of(rows, variant, length)):.1f}"
                for part in ("whole", "there", "scheduled", "token")
            ),
        ]
        for variant in variants
        for length in lengths
    ]
    return "\n".join(
        [
            f"Random weights; {name}, engines on {' and '.join(devices)}; "
            + ", ".join(f"{k} {v}" for k, v in versions().items())
            + ".",
            f"Medians of {repeats} handoffs, one at a time.",
            "",
            f"GB/s by tokens in the prompt, and beside it the part of a {copy} of as many bytes:",
            "",
            table(["connector", *(f"{length:,}" for length in lengths)], rates, "l" + "r" * len(lengths)),
            "",
            "From the end of prefill to the decode engine's first token at the client, in ms, and of that: until the KV"
            " was there, from there until it was scheduled, and from there to its first token in the engine:",
            "",
            table(["connector", "tokens", "whole", "KV there", "scheduled", "token"], waits, "lrrrrr"),
            "",
        ]
    )


def _plot(rows: list[Measured], plain: dict[int, list[float]], path: Path) -> None:
    style.use()
    import matplotlib.pyplot as plt
    import seaborn as sns

    figure, axes = plt.subplots(figsize=(style.WIDTH, 4.2))
    series = [(row.variant, row.tokens, row.gb_per_s) for row in rows]
    series += [("plain copy", tokens, rate) for tokens, rates in plain.items() for rate in rates]
    names = list(dict.fromkeys(name for name, *_ in series))
    sns.lineplot(
        x=[tokens for _, tokens, _ in series],
        y=[rate for *_, rate in series],
        hue=[name for name, *_ in series],
        style=[name for name, *_ in series],
        hue_order=names,
        markers=True,
        dashes=False,
        estimator="median",
        errorbar=("pi", 100),
        ax=axes,
    )
    axes.set(xscale="log", yscale="log", xlabel="tokens in the prompt", ylabel="GB/s", title="KV between engines")
    lengths = sorted(plain)
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.minorticks_off()
    axes.legend(title=None, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    style.save(figure, path)


if __name__ == "__main__":
    main()
