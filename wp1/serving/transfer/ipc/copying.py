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
        """A marker after all work that the calling thread has launched so far; None if it has already ended."""
        ...

    def copy(self, peer: Peer, source: list[int], target: list[int], after: Any = None) -> tuple[float, int]:
        """Copies the peer's block source[n] to our block target[n] and returns once the copy is complete.

        after: a `fence` to wait for first, or None. Returns the copy's seconds by the device's clock, and the number
        of runs of adjacent blocks that it consisted of. If it raises, none of the copy is still in flight.
        """
        ...

    def forget(self, peer: Peer) -> None:
        """Drops everything that refers to the peer's memory."""
        ...

    def checksum(self, blocks: list[int]) -> int:
        """A checksum of our blocks in which each byte, block and layer is weighted by its position."""
        ...


def copier_of(layout: Layout) -> Copier:
    return HostCopier(layout) if layout.storages[0].device.type == "cpu" else DeviceCopier(layout)


def begins_of(source: list[int], target: list[int]) -> np.ndarray:
    """Start indices of the maximal runs of blocks that are adjacent in both lists.

    Raises ValueError if the lists differ in length.
    """
    pairs = np.array([source, target], dtype=np.int64)
    return np.flatnonzero((np.diff(pairs, axis=1, prepend=pairs[:, :1]) != 1).any(axis=0))


def _check(peer: Peer, source: list[int]) -> None:
    """Raises PeerError if a block number is out of range: numpy would wrap around, a GPU would read other memory."""
    if source and not 0 <= min(source) <= max(source) < peer.num_blocks:
        raise PeerError(f"{peer.engine} named block {max(source)} and has {peer.num_blocks}")


class HostCopier:
    """Copies straight from the peer's shared memory into our engine's blocks."""

    def __init__(self, layout: Layout) -> None:
        self._memory = [torch.empty(0, dtype=torch.uint8).set_(storage).numpy() for storage in layout.storages]  # type: ignore[call-overload]
        self._blocks = _block_views(self._memory, layout.regions, layout.num_blocks)
        self._peers: dict[int, list[np.ndarray]] = {}

    def fence(self) -> None:
        """None: a step on a CPU has ended when its call returns."""

    def copy(self, peer: Peer, source: list[int], target: list[int], after: None = None) -> tuple[float, int]:
        _check(peer, source)
        begin = time.perf_counter()
        theirs = self._peers.get(peer.pidfd)
        if theirs is None:
            theirs = self._peers[peer.pidfd] = _block_views(peer.memory, peer.regions, peer.num_blocks)
        begins = begins_of(source, target).tolist()
        runs = [(source[n], target[n], end - n) for n, end in itertools.pairwise([*begins, len(source)])]
        for ours, their in zip(self._blocks, theirs, strict=True):
            for first_source, first_target, count in runs:
                ours[first_target : first_target + count] = their[first_source : first_source + count]
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
    """One kernel on its own stream reads the peer's blocks of all layers and writes ours."""

    def __init__(self, layout: Layout) -> None:
        self._device = layout.storages[0].device
        self._layout = layout
        self._tables: dict[int, list[_Table]] = {}
        # Runs ahead of the engine's own kernels, as a request waits for this copy.
        self._stream = torch.cuda.Stream(self._device, priority=-1)
        # Blocking events: waiting for one must not keep a core busy.
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
        # The current GPU is set per thread.
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
                # After a failure is reported, our blocks may be reused: nothing may still write to them.
                self._stream.synchronize()
                raise
        runs = len(begins_of(source, target))  # computed while the device copies
        self._end.synchronize()
        return self._begin.elapsed_time(self._end) / 1e3, runs

    def forget(self, peer: Peer) -> None:
        self._tables.pop(peer.pidfd, None)

    def _tables_of(self, peer: Peer) -> "list[_Table]":
        """One table for each region size; most models have a single size."""
        rows: dict[int, list[list[int]]] = {}
        for ours, theirs in zip(self._layout.regions, peer.regions, strict=True):
            target = self._layout.storages[ours.storage].data_ptr() + ours.offset
            source = peer.memory[theirs.storage].data_ptr() + theirs.offset
            rows.setdefault(ours.size, []).append([source, theirs.stride, target, ours.stride])
        return [_Table(size, torch.tensor(addresses).to(self._device)) for size, addresses in rows.items()]

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
                # A few blocks at a time, because widening to int64 takes eight times the memory.
                for first in range(0, len(blocks), 256):
                    chosen = part[index[first : first + 256]].to(torch.int64)
                    sums[first : first + 256] += (chosen * weights).sum(dim=1)
            positions = torch.arange(1, len(blocks) + 1, device=self._device)
            total += number * int((sums * positions).sum())
        return total % (1 << 62)


class _Table:
    """Regions of `size` bytes: rows of (their address, their stride, our address, our stride)."""

    def __init__(self, size: int, addresses: torch.Tensor) -> None:
        self.size = size
        self.addresses = addresses
