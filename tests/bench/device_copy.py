"""What a copy of KV from one GPU to another costs beyond its bytes, by part.

    python -m tests.bench.device_copy --write DIR      (needs two GPUs; 30 s)
    python -m tests.bench.device_copy --page DIR       (makes the page again from the rows)

One process has a KV cache on GPU 0. This process has one on GPU 1 and maps the other, as the engines of transfer=ipc
do. Both are laid out as vLLM lays out the 8B shape: 32 layers, blocks of 64 KiB in each. All times come from CUDA
events. How a copy is launched decides what they include:
  idle     the stream has nothing to do, so the time the host takes to launch the kernel counts. transfer=ipc times
           itself like this, since a request waits for the launch as well.
  queued   everything is launched behind a kernel that only waits, so this is the device's time alone.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.bench import device_copy_page, machine
from wp1.serving.transfer.ipc import exports
from wp1.serving.transfer.ipc.copying import DeviceCopier
from wp1.serving.transfer.ipc.layout import Layout, layout_of

LAYERS, NUM_BLOCKS = 32, 8192
SHAPE = (NUM_BLOCKS, 2, 16, 8, 128)  # K and V of 16 tokens, 8 heads of 128
REGION_BYTES = 2 * 16 * 8 * 128 * 2
BLOCK_BYTES = LAYERS * REGION_BYTES
COUNTS = [1, 8, 32, 64, 128, 512, 2048]  # blocks of a copy; 64 blocks are 1,024 tokens
RESTS_S = [0.0, 0.001, 0.01, 0.1, 0.5]
FACTS: dict[str, Any] = {"vllm": "none", "model": "copy", "kv_dtype": "auto", "block_tokens": 16, "device": "cuda"}
WAIT_CYCLES = 4_000_000  # 2 ms, longer than any launch takes
REPEATS, WARM = 12, 3

Run = Callable[[], Any]
Table = torch.Tensor  # int64 (regions, 4): their address and stride, our address and stride, in bytes


def cache(device: str) -> tuple[Layout, list[torch.Tensor]]:
    """Returns a KV cache of zeros as a layout, and its tensors, which have to stay referenced."""
    tensors = {f"layers.{n}": torch.zeros(SHAPE, dtype=torch.bfloat16, device=device) for n in range(LAYERS)}
    return layout_of(tensors, dict.fromkeys(tensors, REGION_BYTES), NUM_BLOCKS), list(tensors.values())


def other_process(pipe: Connection, folder: str) -> None:
    """Offers a cache on its GPU until it is told to stop."""
    layout, tensors = cache("cuda")
    exports.offer(Path(folder) / "peer.json", layout, "peer", "peer", FACTS)
    pipe.send("ready")
    pipe.recv()
    del tensors


def addresses(source: Layout, storages: list[Any], target: Layout) -> Table:
    """Returns the kernel's table of addresses, as `DeviceCopier` makes it."""
    rows = [
        [
            storages[theirs.storage].data_ptr() + theirs.offset,
            theirs.stride,
            target.storages[ours.storage].data_ptr() + ours.offset,
            ours.stride,
        ]
        for theirs, ours in zip(source.regions, target.regions, strict=True)
    ]
    return torch.tensor(rows, device="cuda")


def blocks_of(count: int, order: str, chance: random.Random) -> list[int]:
    """Returns block numbers: neighbours for the order `run`, unrelated ones for `aged`."""
    if order == "aged":
        return chance.sample(range(NUM_BLOCKS), count)
    first = chance.randrange(NUM_BLOCKS - count + 1)
    return list(range(first, first + count))


def times_of(make: Callable[[], Run], queued: bool, rest_s: float = 0.0, repeats: int = REPEATS) -> list[float]:
    """Returns the ms that each prepared run takes; `make` prepares one, and is not timed. The first are dropped."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    found = []
    for _ in range(repeats):
        run = make()
        torch.cuda.synchronize()
        if rest_s:
            time.sleep(rest_s)
        if queued:
            torch.cuda._sleep(WAIT_CYCLES)
        begin.record()
        run()
        end.record()
        end.synchronize()
        found.append(begin.elapsed_time(end))
    return found[min(WARM, repeats - 1) :]


class Bench:
    """Measures copies into our cache and writes a row for each."""

    def __init__(self, rows: Path, peer: exports.Peer, ours: Layout) -> None:
        self._rows = rows
        self._chance = random.Random(1)
        self._peer, self._ours = peer, ours

    def measure(self) -> None:
        near, near_tensors = cache("cuda:0")
        flat = [torch.empty(max(COUNTS) * BLOCK_BYTES, dtype=torch.uint8, device=f"cuda:{n}") for n in (0, 1)]
        ipc = addresses(self._ours, self._peer.memory, self._ours)
        self._launches()
        self._by_size("kernel, ipc", lambda count: self._kernel(ipc, count))
        self._by_size("kernel, pushed", lambda count: self._kernel(ipc[:, [2, 3, 0, 1]].contiguous(), count))
        one_gpu = addresses(near, near.storages, self._ours)
        self._by_size("kernel, one GPU", lambda count: self._kernel(one_gpu, count))
        self._by_size("one piece", lambda count: lambda: _one_piece(flat, count))
        self._as_transfer()
        for count in (64, 512, 2048):
            self._note("kernel, ipc, aged", "queued", count, times_of(self._kernel(ipc, count, "aged"), True))
        for rest_s in RESTS_S:
            for how in ("queued", "idle"):
                found = times_of(self._kernel(ipc, 64), how == "queued", rest_s, 7)
                self._note("kernel, ipc, after a rest", how, 64, found, rest_s=rest_s)
        self._in_a_row(ipc)
        self._tunings(ipc)
        del near_tensors

    def _note(self, what: str, how: str, count: int, times: list[float], **more: Any) -> None:
        middle = statistics.median(times)
        size = count * BLOCK_BYTES
        row = {
            "what": what, "how": how, "blocks": count, "bytes": size, "ms": round(middle, 4),
            "least_ms": round(min(times), 4), "most_ms": round(max(times), 4),
            "gb_per_s": round(size / middle / 1e6, 1), **more,
        }  # fmt: skip
        with self._rows.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def _kernel(self, table: Table, count: int, order: str = "run") -> Callable[[], Run]:
        """Returns what prepares a launch of transfer=ipc's kernel over other blocks each time."""
        from wp1.serving.transfer.ipc.kernel import launch

        def make() -> Run:
            pairs = np.array([blocks_of(count, order, self._chance) for _ in range(2)], dtype=np.int64)
            blocks = torch.from_numpy(pairs).cuda()
            return lambda: launch(table, blocks, REGION_BYTES)

        return make

    def _launches(self) -> None:
        small = torch.zeros(1, device="cuda")
        for how in ("idle", "queued"):
            self._note("two events", how, 0, times_of(lambda: lambda: None, how == "queued"))
            self._note("torch's smallest kernel", how, 0, times_of(lambda: lambda: small.add_(1), how == "queued"))

    def _by_size(self, what: str, of_count: Callable[[int], Callable[[], Run]]) -> None:
        for how in ("idle", "queued"):
            for count in COUNTS:
                self._note(what, how, count, times_of(of_count(count), how == "queued"))

    def _as_transfer(self) -> None:
        """`DeviceCopier.copy` as the receiver calls it: the time it reports, and the time its caller waits."""
        copier = DeviceCopier(self._ours)
        for order in ("run", "aged"):
            for count in COUNTS:
                told, waited = [], []
                for _ in range(REPEATS):
                    source, target = (blocks_of(count, order, self._chance) for _ in range(2))
                    begin = time.perf_counter()
                    seconds, _ = copier.copy(self._peer, source, target)
                    waited.append((time.perf_counter() - begin) * 1e3)
                    told.append(seconds * 1e3)
                self._note(f"DeviceCopier, {order}", "told", count, told[WARM:])
                self._note(f"DeviceCopier, {order}", "waited", count, waited[WARM:])

    def _in_a_row(self, table: Table) -> None:
        """Copies queued one behind the other after a rest: a link that has to wake up delays the first alone."""
        for counts in ([64, 64, 64, 64], [1, 64, 64], [1, 1, 1, 1]):
            events = [torch.cuda.Event(enable_timing=True) for _ in range(len(counts) + 1)]
            by_place: list[list[float]] = [[] for _ in counts]
            for _ in range(REPEATS):
                runs = [self._kernel(table, count)() for count in counts]
                torch.cuda.synchronize()
                time.sleep(0.05)
                torch.cuda._sleep(WAIT_CYCLES)
                events[0].record()
                for run, event in zip(runs, events[1:], strict=True):
                    run()
                    event.record()
                events[-1].synchronize()
                for place in range(len(counts)):
                    by_place[place].append(events[place].elapsed_time(events[place + 1]))
            for place, found in enumerate(by_place):
                self._note(f"in a row {counts}", f"queued, number {place + 1}", counts[place], found[WARM:])

    def _tunings(self, table: Table) -> None:
        """The kernel with other tiles (words of 8 bytes that a program moves at a time) and warps than its own."""
        from wp1.serving.transfer.ipc import kernel

        def make(count: int, tile: int, warps: int) -> Run:
            pairs = np.array([blocks_of(count, "run", self._chance) for _ in range(2)], dtype=np.int64)
            blocks = torch.from_numpy(pairs).cuda()
            run: Any = kernel._copy_blocks
            return lambda: run[count, LAYERS](table, blocks[0], blocks[1], REGION_BYTES // 8, tile, num_warps=warps)

        for tile, warps, count in itertools.product((1024, 2048, 4096, 8192), (4, 8, 16), (64, 512)):
            found = times_of(lambda c=count, t=tile, w=warps: make(c, t, w), True, repeats=8)
            self._note("kernel, ipc, tuned", "queued", count, found, tile=tile, warps=warps)


def _one_piece(flat: list[torch.Tensor], count: int) -> Run:
    size = count * BLOCK_BYTES
    target, source = flat[0][:size], flat[1][:size]
    return lambda: target.copy_(source, non_blocking=True)


def _measure(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.jsonl").unlink(missing_ok=True)
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    with tempfile.TemporaryDirectory() as offers:
        child = context.Process(target=other_process, args=(there, offers), daemon=True)
        # As wp1's engines see them: the own GPU first, the peer's second. Read when a process first uses CUDA.
        os.environ["CUDA_VISIBLE_DEVICES"] = "0"
        child.start()
        os.environ["CUDA_VISIBLE_DEVICES"] = "1,0"
        there.close()
        try:
            here.recv()
            ours, tensors = cache("cuda:0")
            peer = exports.open_peer(Path(offers) / "peer.json", FACTS | {"form": ours.form})
            Bench(folder / "rows.jsonl", peer, ours).measure()
            here.send("stop")
            del tensors
        finally:
            child.kill()
            child.join()
    facts = {"machine": machine.device(), "versions": machine.installed()}
    (folder / "facts.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--write", type=Path, metavar="DIR", help="measure; rows and page go to this folder")
    where.add_argument("--page", type=Path, metavar="DIR", help="a folder of --write: make its page again")
    asked = parser.parse_args()
    if asked.write is not None:
        _measure(asked.write)
    try:
        print(device_copy_page.write_page(asked.write or asked.page))
    except FileNotFoundError as error:
        parser.error(f"--page: {error.filename} is missing, so {asked.page} is not a folder of --write")
    return 0


if __name__ == "__main__":
    sys.exit(main())
