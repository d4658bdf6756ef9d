"""This process's resident memory, from Linux: the total, the peak, and how much of an address range is resident.

Sources: proc_pid_status(5) (VmRSS, VmHWM, RssAnon, RssFile, RssShmem), proc_pid_clear_refs(5) ("5" resets VmHWM),
proc_pid_pagemap(5) (bit 63: the page is present), malloc_trim(3).
"""

import ctypes
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wp1.machine import hardware
from wp1.serving.memory.tensors import Range, ranges

PRESENT = np.uint64(1 << 63)
FIELDS = {
    "VmRSS": "resident",
    "VmHWM": "peak",
    "RssAnon": "anonymous",
    "RssFile": "files",
    "RssShmem": "shared",
}


def status(pid: int | str = "self") -> dict[str, int]:
    """Resident bytes of a process: now, at the peak, and now by kind (anonymous, files, shared)."""
    sizes = {}
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in FIELDS:
            sizes[FIELDS[name]] = int(value.split()[0]) << 10
    return sizes


def reset_peak() -> bool:
    """Resets the peak to what is resident now; returns False if the system does not allow it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def resident(where: Iterable[Range]) -> int | None:
    """Resident bytes in these address ranges, in whole pages; None if the system does not report them."""
    page = os.sysconf("SC_PAGE_SIZE")
    total = 0
    try:
        with Path("/proc/self/pagemap").open("rb", buffering=0) as pages:
            for first, size in where:
                begin, end = first // page, -(-(first + size) // page)
                pages.seek(begin * 8)
                entries = np.frombuffer(pages.read((end - begin) * 8), dtype=np.uint64)
                total += int(np.count_nonzero(entries & PRESENT)) * page
    except OSError:
        return None
    return total


def own_of(pid: int) -> int | None:
    """Resident bytes that only this process uses (its end would free them); None if the system does not report them."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return None
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(("Private_Clean:", "Private_Dirty:")))


def give_back() -> None:
    """Returns the C library's unused memory to the system, if the library can do that."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class HostMeter:
    """Implements `wp1.serving.memory.accounting.Meter` for resident memory."""

    def __init__(self, local_rank: int) -> None:
        self._kv: list[Range] = []
        self._can_reset = reset_peak()
        self._before = (0, 0)  # resident bytes when the step began: in total, and of KV
        self._highest = 0

    def note(self) -> dict[str, Any]:
        # Freed memory that the allocator still holds would be counted towards the next stage.
        give_back()
        return {**status(), "kv": resident(self._kv)}

    def kv_is_there(self, kv: Sequence[Any]) -> None:
        self._kv = ranges(kv)

    def begin(self) -> None:
        reset_peak()
        self._before = (status()["resident"], resident(self._kv) or 0)

    def end(self) -> int | None:
        peak = status()["peak"]
        self._highest = max(self._highest, peak)
        if not self._can_reset:
            return None
        resident_before, kv_before = self._before
        new_kv = (resident(self._kv) or 0) - kv_before
        # The kernel updates a thread's page counts in batches, so a small step may come out below zero.
        return max(0, peak - resident_before - new_kv)

    def account(self, weights: Sequence[Any], kv: Sequence[Any]) -> dict[str, Any]:
        before = status()["resident"]
        peak, self._highest = max(self._highest, before), 0
        give_back()
        now = status()
        return {
            "used": now["resident"],
            "peak": peak,
            "kept": before - now["resident"],
            "anonymous": now["anonymous"],
            "files": now["files"],
            "shared": now["shared"],
            "kv": resident(ranges(kv)),
            "kv_shared": any(storage.is_shared() for storage in kv),
            "core_process": own_of(os.getppid()),
            "limit": hardware.memory_limit_bytes(),
        }
