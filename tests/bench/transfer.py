"""make bench-transfer: moves the KV cache from engine to engine with each connector, against a plain copy of the bytes.

Each connector gets two real engines, which serve prompts of the same lengths one at a time. The weights are random:
tokens mean nothing, but bytes and times are real. A transfer's rate is its bytes divided by the time the connector
reports: for ipc the device's clock around the copy, for NIXL from posting to completion. The plain copy moves as many
bytes with torch, in a process of its own: gathered in rows of 64 KiB if both engines are on one device, in one piece
from GPU to GPU if not (see scheduler.devices; `[0,0]` makes them share a GPU).

The second table shows what a user waits for: the time from the end of prefill to the decode engine's first token, and
its parts.

Starting engines takes most of the time: on a GPU up to two minutes for the first and 40 s for the others. The work can
be split: with --write DIR each length is written once it is measured, and not measured again. If a machine is available
for ten minutes at a time, repeat the same call on the same kind of machine until nothing is left:

  make bench-transfer ARGS="--write DIR --budget-s 500"
  make bench-transfer ARGS="--write DIR --only 'ipc,ipc overlap,NIXL push'"
  make bench-transfer ARGS="--page DIR"
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

from tests.bench.transfer_page import DiffersError, Measured, Results
from wp1.config import schema
from wp1.core.identity import versions
from wp1.core.plan import plan
from wp1.core.records import Event, Handoff, Request, RequestRecord, new_record
from wp1.machine import hardware
from wp1.machine.output import output_to
from wp1.main import CONF
from wp1.model import models
from wp1.runner.console import Screen
from wp1.serving.engines import make_scheduler, places_of
from wp1.serving.guard import ProcessGuard
from wp1.workload.prompts import random_token_ids
from wp1.workload.seeds import derive_seed

TUNED = "backend.engine.block_size=128"
LAYERS = [TUNED, "transfer.extra.enable_cross_layers_blocks=True"]
# Most important first: a call that runs out of time measures the first ones.
VARIANTS = {
    "ipc": ["transfer=ipc", "transfer.overlap=off"],
    "ipc overlap": ["transfer=ipc"],
    "NIXL push": ["transfer=nixl_push"],
    "NIXL pull": ["transfer=nixl_pull"],
    "NIXL push layers": ["transfer=nixl_push", *LAYERS],
    "NIXL pull layers": ["transfer=nixl_pull", *LAYERS],
    "ipc 128": ["transfer=ipc", "transfer.overlap=off", TUNED],
    "NIXL push 128": ["transfer=nixl_push", TUNED],
    "NIXL pull 128": ["transfer=nixl_pull", TUNED],
    # Shows the benefit of loading the KV of short prompts within the step of their first token.
    "ipc beside steps": ["transfer=ipc", "transfer.at_once_mib=0"],
}
OVERLAP = "transfer.overlap=off"
# For a CPU: as many KV bytes per token as SmolLM2-135M, and almost nothing to compute.
THIN = [
    "model.architecture.hidden_size=96",
    "model.architecture.intermediate_size=96",
    "model.architecture.num_hidden_layers=30",
    "model.architecture.num_attention_heads=3",
    "model.architecture.num_key_value_heads=3",
    "model.architecture.head_dim=64",
]
# A handoff that takes longer is given up, and its variant with it.
STUCK_S = 120.0
ON_CPU = {"lengths": [256, 1024, 4096], "kv_gib": 0.5, "variants": list(VARIANTS)[:4]}
ON_GPU = {"lengths": [1024, 8192, 32768, 65536], "kv_gib": 14.0, "variants": list(VARIANTS)}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="make bench-transfer", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    defaults = ON_CPU if hardware.device_type() == "cpu" else ON_GPU
    parser.add_argument("--only", default=",".join(defaults["variants"]), help=f"some of {','.join(VARIANTS)}")
    parser.add_argument("--lengths", type=int, nargs="+", default=defaults["lengths"], help="prompt lengths in tokens")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--slow-s", type=float, default=2.0, help="if the first handoff of a length takes longer, measure only that one"
    )
    parser.add_argument(
        "--budget-s",
        type=float,
        help="start no engines after this many seconds, or if less is left than the longest variant took",
    )
    parser.add_argument("--write", type=Path, help="folder for rows, page and plot; rows already in it are kept")
    parser.add_argument("--page", type=Path, help="a folder of --write: make its page and plot again without measuring")
    parser.add_argument("overrides", nargs="*", help="configuration overrides for every variant")
    args = parser.parse_args()
    if args.page is not None:
        try:
            print(Results.read(args.page).write_page())
        except FileNotFoundError:
            parser.error(f"--page: {args.page} has no facts.json: name a folder that --write has made")
        return
    args.only = args.only.split(",")
    if unknown := set(args.only) - set(VARIANTS):
        parser.error(f"--only: unknown variant {', '.join(sorted(unknown))}: choose from {','.join(VARIANTS)}")
    with tempfile.TemporaryDirectory() as folder, Screen() as screen:
        try:
            results = Results.begin(args.write or Path(folder) / "results", _facts(args))
        except DiffersError as error:
            parser.error(f"--write: {error}; name another folder")
        stopped = _measure_all(args, defaults["kv_gib"], Path(folder), screen, results)
        print(results.write_page())
    if stopped or set(args.only) & set(results.missing):
        raise SystemExit(1)


def _facts(args: Any) -> dict[str, Any]:
    """The facts that must be the same for all calls with one folder."""
    cfg = _config(args, 1.0, Path(), [])
    devices = [place.gpus[0] if place.gpus else None for _, place in places_of(plan(cfg)[0])]
    gpus = hardware.gpus()
    return {
        "machine": gpus[0].name if gpus else f"CPU, {len(hardware.cores())} cores",
        "engines": " and ".join("cpu" if gpu is None else f"cuda:{gpu}" for gpu in devices),
        "apart": bool(gpus) and len(set(devices)) > 1,
        "versions": dict(versions()),
        "overrides": list(args.overrides),
    }


def _measure_all(args: Any, kv_gib: float, folder: Path, screen: Screen, results: Results) -> bool:
    """Measures what the folder does not have yet. Returns whether it stopped early."""
    begin, longest = time.monotonic(), 0.0
    # An earlier call may have stopped before its plain copies.
    results.add_plain(_plain_copy(set(args.lengths) - {tokens for tokens, _ in results.plain}, results))
    for group in groups_of(args.only):
        wanted = [(v, n) for n in args.lengths for v in group if not results.has(v, n)]
        if not wanted:
            screen.say(f"{', '.join(group)}: already measured")
            continue
        now = time.monotonic()
        if args.budget_s is not None and now - begin + longest > args.budget_s:
            screen.say(f"{', '.join(group)}: not enough of --budget-s is left; call again with the same --write")
            return True
        # Kept next to the rows, because it says why an engine did not start.
        log = (args.write or folder) / "engine.log"
        with output_to(log):
            try:
                asyncio.run(_measure(group, wanted, args, kv_gib, folder, log, screen, results))
            except KeyboardInterrupt:  # keep what was measured
                screen.say("interrupted")
                return True
            except Exception as error:  # continue with the other variants
                for variant in {v for v, n in wanted if not results.has(v, n)}:
                    results.miss(variant, str(error)[:2000] or type(error).__name__)
            for variant in {v for v, _ in wanted} & set(results.missing):
                if all(results.has(variant, n) for n in args.lengths):
                    results.miss(variant, None)
        results.add_plain(_plain_copy(set(args.lengths), results))
        results.write_page()
        longest = max(longest, time.monotonic() - now)
    return False


def groups_of(variants: list[str]) -> list[list[str]]:
    """Groups variants that can share engines, whose start takes most of the time: those that differ only in overlap."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for variant in variants:
        groups.setdefault(tuple(word for word in VARIANTS[variant] if word != OVERLAP), []).append(variant)
    return list(groups.values())


def _config(args: Any, kv_gib: float, folder: Path, overrides: list[str]) -> Any:
    most = max(args.lengths) + 64
    overrides = [
        f"root={folder.absolute()}", "scheduler=disagg", "scheduler.first_token=decode", "model=llama31_8b_shape",
        f"model.max_len={most}", f"backend.kv_cache_gib={kv_gib}", "backend.engine.max_num_seqs=8",
        *(THIN if hardware.device_type() == "cpu" else []), *overrides, *args.overrides,
    ]  # fmt: skip
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return schema.resolve(compose("config", list(map(schema.with_plus, overrides))))


async def _measure(
    group: list[str],
    wanted: list[tuple[str, int]],
    args: Any,
    kv_gib: float,
    folder: Path,
    log: Path,
    screen: Screen,
    results: Results,
) -> None:
    """Measures variants that share engines, and adds rows after each length, so that they survive an interruption."""
    names = ", ".join(group)
    overlapping = [variant for variant in group if OVERLAP not in VARIANTS[variant]]
    cfg = _config(args, kv_gib, folder, VARIANTS[(overlapping or group)[0]])
    model = models.prepare(cfg)
    handoffs: dict[str, Handoff] = {}

    def write(row: Event) -> None:
        if isinstance(row, Handoff):
            handoffs[row.request_id] = row

    with ProcessGuard() as guard:
        scheduler: Any = make_scheduler(cfg, plan(cfg)[0], model, log, guard.kill, write)
        begin = time.monotonic()
        with screen.step(f"{names}: starting two engines"):
            await scheduler.__aenter__()
        screen.say(f"{names}: up after {time.monotonic() - begin:.0f} s")
        try:
            for variant, length in wanted:
                if len(group) > 1:
                    scheduler._pools.transfer.overlap = variant in overlapping
                with screen.step(f"{variant}: {length:,} tokens x {args.repeats}"):
                    records = await _handoffs(scheduler, model, variant, length, args)
                    # An engine reports a transfer with its next step.
                    await scheduler._pools.ledger.settle()
                results.add([_measured(variant, length, record, handoffs[record.request_id]) for record in records])
        finally:
            await scheduler.__aexit__(None, None, None)


async def _handoffs(scheduler: Any, model: Any, variant: str, length: int, args: Any) -> list[RequestRecord]:
    """Sends requests one after the other. Returns all but the first, the warm-up; or only the first, if it is slow."""
    records = []
    for n in range(1 + args.repeats):
        prompt = random_token_ids(length, model.vocab_size, derive_seed("bench", variant, length, n))
        request = Request(
            f"{variant.replace(' ', '_')}_{length}_{n}", "disagg", f"{length}", 0, prompt, 4, seed=n, ignore_eos=True,
            timeout_s=STUCK_S,
        )  # fmt: skip
        record = new_record(request, time.monotonic())
        await scheduler.serve(request, record)
        if record.status != "ok":
            raise RuntimeError(f"{length} tokens: {record.error}")
        records.append(record)
        if n == 0 and _span(record.t_engine_first_token, record.t_tokens[0]) > args.slow_s:
            return records
    return records[1:]


def _measured(variant: str, tokens: int, record: RequestRecord, handoff: Handoff) -> Measured:
    """One row of results. Raises RuntimeError if the connector's report allows no rate."""
    if handoff.bytes is None:
        raise RuntimeError(f"{variant}, {tokens} tokens: the connector reported no bytes")
    if handoff.bytes_expected is not None and handoff.bytes != handoff.bytes_expected:
        raise RuntimeError(
            f"{variant}, {tokens} tokens: the connector reported {handoff.bytes:,} bytes, but the prompt has "
            f"{handoff.bytes_expected:,}"
        )
    seconds = handoff.copy_s or _span(handoff.t_transfer_begin, handoff.t_transfer_end)
    if seconds <= 0:
        raise RuntimeError(f"{variant}, {tokens} tokens: the connector reported a transfer time of zero or less")
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


def _plain_copy(lengths: set[int], results: Results) -> dict[int, float]:
    """GB/s by prompt length of copying as many bytes with torch between the engines' devices."""
    size = {row.tokens: row.bytes for row in results.rates() if row.tokens in lengths}
    if not size:
        return {}
    gpus = hardware.gpu_indices()
    names = results.facts["engines"].split(" and ")
    ordinals = [gpus.index(int(name.removeprefix("cuda:"))) if gpus else 0 for name in names]
    command = [sys.executable, "-c", PLAIN, json.dumps([list(size.values()), *ordinals])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return dict(zip(size, json.loads(done.stdout), strict=True))


PLAIN = """
import json, sys, time, torch
sizes, here, there = json.loads(sys.argv[1])
cuda = torch.cuda.is_available()
torch.set_num_threads(1)
rates = []
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
    for _ in range(12):
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
    warm = sorted(times[3:])
    rates.append(rows * 65536 / warm[len(warm) // 2] / 1e9)
print(json.dumps(rates))
"""


if __name__ == "__main__":
    try:
        main()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 0
    sys.stdout.flush()
    # Exit as wp1 does: vLLM's finalisers print errors at interpreter exit.
    os._exit(code)
