"""Copies blocks from a peer's KV cache into ours: memory copies on a CPU, one kernel for all layers on a GPU."""

import itertools
import time
from typing import Any, Protocol

import numpy as np
import torch

from wp1.serving.transfer.ipc.exports import Peer, PeerError
from wp1.serving.transfer.ipc.layout import Layout, Region


class Copier(Protocol):
    def fence(self) -> Any:
        """What a copy must wait for: all that the calling thread has launched until now; None where it has ended."""
        ...

    def copy(self, peer: Peer, source: list[int], target: list[int], after: Any = None) -> tuple[float, int]:
        """Copies block source[n] of the peer to our block target[n], once `after` is over; returns when it is there.

        after: a `fence`, or None. Returns the seconds that the copy took, by the device's clock, and in how many runs
        of neighbours it was. Also where it raises, nothing of it is under way any more.
        """
        ...

    def forget(self, peer: Peer) -> None:
        """Lets go of what was kept of the peer's memory."""
        ...

    def checksum(self, blocks: list[int]) -> int:
        """A number over our blocks, to which each byte, block and layer counts by its place."""
        ...


def copier_of(layout: Layout) -> Copier:
    return HostCopier(layout) if layout.storages[0].device.type == "cpu" else DeviceCopier(layout)


def begins_of(source: list[int], target: list[int]) -> np.ndarray:
    """Where in both lists runs of neighbours on both sides begin, as few as can be. ValueError: one list is shorter."""
    pairs = np.array([source, target], dtype=np.int64)
    return np.flatnonzero((np.diff(pairs, axis=1, prepend=pairs[:, :1]) != 1).any(axis=0))


def _check(peer: Peer, source: list[int]) -> None:
    """Raises PeerError where the peer has no such block; numpy would repeat one, and a GPU read whatever is there."""
    if source and not 0 <= min(source) <= max(source) < peer.num_blocks:
        raise PeerError(f"{peer.engine} named block {max(source)} and has {peer.num_blocks}")


class HostCopier:
    """One copy, from the peer's shared memory to where our engine has its blocks."""

    def __init__(self, layout: Layout) -> None:
        self._memory = [torch.empty(0, dtype=torch.uint8).set_(storage).numpy() for storage in layout.storages]  # type: ignore[call-overload]
        self._blocks = _block_views(self._memory, layout.regions, layout.num_blocks)
        self._peers: dict[int, list[np.ndarray]] = {}

    def fence(self) -> None:
        """A step on a CPU has ended when its call returns."""

    def copy(self, peer: Peer, source: list[int], target: list[int], after: None = None) -> tuple[float, int]:
        _check(peer, source)
        begin = time.perf_counter()
        theirs = self._peers.get(peer.pidfd)
        if theirs is None:
            theirs = self._peers[peer.pidfd] = _block_views(peer.memory, peer.regions, peer.num_blocks)
        begins = begins_of(source, target).tolist()
        runs = [(source[n], target[n], end - n) for n, end in itertools.pairwise([*begins, len(source)])]
        for ours, their in zip(self._blocks, theirs, strict=True):
            for here, there, count in runs:
                ours[there : there + count] = their[here : here + count]
        return time.perf_counter() - begin, len(runs)

    def forget(self, peer: Peer) -> None:
        self._peers.pop(peer.pidfd, None)

    def checksum(self, blocks: list[int]) -> int:
        total = 0
        for number, region in enumerate(self._blocks, start=1):
            rows = region[blocks].astype(np.int64)
            weights = np.arange(1, rows.shape[1] + 1, dtype=np.int64)
            total += number * int(((rows @ weights) * np.arange(1, len(blocks) + 1)).sum())
        return total % (1 << 62)


def _block_views(memory: list[np.ndarray], regions: list[Region], num_blocks: int) -> list[np.ndarray]:
    """Each region as an array (blocks, bytes)."""
    return [
        np.lib.stride_tricks.as_strided(
            memory[region.storage][region.offset :],
            (num_blocks, region.size),
            (region.stride, 1),
            writeable=memory[region.storage].flags.writeable,
        )
        for region in regions
    ]


class DeviceCopier:
    """One kernel that reads the peer's blocks over all layers and writes ours, on a stream of its own."""

    def __init__(self, layout: Layout) -> None:
        self._device = layout.storages[0].device
        self._layout = layout
        self._tables: dict[int, list[_Table]] = {}
        # Before the engine's own kernels: a request waits for this one.
        self._stream = torch.cuda.Stream(self._device, priority=-1)
        # Waiting for an event must not keep a core busy.
        self._begin = torch.cuda.Event(enable_timing=True, blocking=True)
        self._end = torch.cuda.Event(enable_timing=True, blocking=True)

    def fence(self) -> torch.cuda.Event:
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._device))
        return event

    def copy(
        self, peer: Peer, source: list[int], target: list[int], after: torch.cuda.Event | None = None
    ) -> tuple[float, int]:
        from wp1.serving.transfer.ipc.kernel import launch

        _check(peer, source)
        # Which GPU is the current one is a thread's own.
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            tables = self._tables.get(peer.pidfd)
            if tables is None:
                tables = self._tables[peer.pidfd] = self._tables_of(peer)
            pairs = torch.from_numpy(np.array([source, target], dtype=np.int64))
            blocks = pairs.pin_memory().to(self._device, non_blocking=True)
            if after is not None:
                self._stream.wait_event(after)
            self._begin.record()
            try:
                for table in tables:
                    launch(table.addresses, blocks, table.size)
                self._end.record()
            except BaseException:
                # Who hears that it failed gives our blocks to others.
                self._stream.synchronize()
                raise
        runs = len(begins_of(source, target))  # while the device is at work
        self._end.synchronize()
        return self._begin.elapsed_time(self._end) / 1e3, runs

    def forget(self, peer: Peer) -> None:
        self._tables.pop(peer.pidfd, None)

    def _tables_of(self, peer: Peer) -> "list[_Table]":
        """Regions of one size in a table each; most models have one."""
        rows: dict[int, list[list[int]]] = {}
        for ours, theirs in zip(self._layout.regions, peer.regions, strict=True):
            here = self._layout.storages[ours.storage].data_ptr() + ours.offset
            there = peer.memory[theirs.storage].data_ptr() + theirs.offset
            rows.setdefault(ours.size, []).append([there, theirs.stride, here, ours.stride])
        return [_Table(size, torch.tensor(of_size).to(self._device)) for size, of_size in rows.items()]

    def checksum(self, blocks: list[int]) -> int:
        total = 0
        index = torch.tensor(blocks, device=self._device)
        for number, region in enumerate(self._layout.regions, start=1):
            storage = self._layout.storages[region.storage]
            flat = torch.empty(0, dtype=torch.uint8, device=self._device).set_(storage)  # type: ignore[call-overload]
            rows = flat.as_strided((self._layout.num_blocks, region.size), (region.stride, 1), region.offset)
            sums = torch.zeros(len(blocks), dtype=torch.int64, device=self._device)
            for at, part in zip(itertools.count(0, 1 << 14), rows.split(1 << 14, dim=1), strict=False):
                weights = torch.arange(at + 1, at + part.shape[1] + 1, device=self._device)
                # A few blocks at a time: the bytes are widened to eight times their size.
                for first in range(0, len(blocks), 256):
                    chosen = part[index[first : first + 256]].to(torch.int64)
                    sums[first : first + 256] += (chosen * weights).sum(dim=1)
            places = torch.arange(1, len(blocks) + 1, device=self._device)
            total += number * int((sums * places).sum())
        return total % (1 << 62)


class _Table:
    """Addresses and strides of regions of `size` bytes: rows of (theirs, their stride, ours, our stride)."""

    def __init__(self, size: int, addresses: torch.Tensor) -> None:
        self.size = size
        self.addresses = addresses
