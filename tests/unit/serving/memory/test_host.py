"""Linux's figures for this process."""

import mmap
import os

import numpy as np
import pytest

from wp1.serving.memory import host

PAGE = os.sysconf("SC_PAGE_SIZE")
SIZE = 64 << 20


def _address(memory: mmap.mmap) -> int:
    return np.frombuffer(memory, dtype=np.uint8).__array_interface__["data"][0]


def test_pages_are_resident_once_they_were_touched() -> None:
    memory = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    where = [(_address(memory), SIZE)]
    assert host.resident(where) == 0
    for page in range(100):
        memory[page * PAGE] = 1
    found = host.resident(where)
    assert found is not None
    # Huge pages may make neighbouring pages resident too.
    assert 100 * PAGE <= found <= SIZE
    assert host.resident([(where[0][0] + SIZE // 2, PAGE)]) in (0, PAGE)


def test_a_range_counts_every_page_that_it_touches() -> None:
    memory = mmap.mmap(-1, 4 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory[:] = b"x" * len(memory)
    first = _address(memory)
    assert host.resident([(first + PAGE - 1, 2)]) == 2 * PAGE
    assert host.resident([(first, 4 * PAGE)]) == 4 * PAGE
    assert host.resident([]) == 0


def test_the_peak_is_reset() -> None:
    if not host.reset_peak():
        pytest.skip("this system does not let a process reset its peak")
    block = np.ones(SIZE, dtype=np.uint8)
    high = host.status()["peak"]
    del block
    host.reset_peak()
    assert host.status()["peak"] < high - SIZE // 2


def test_a_steps_peak_excludes_new_kv() -> None:
    meter = host.HostMeter(0)
    if not host.reset_peak():
        pytest.skip("this system does not let a process reset its peak")
    kv = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    meter._kv = [(_address(kv), SIZE)]
    meter.begin()
    for page in range(SIZE // PAGE):
        kv[page * PAGE] = 1
    activations = np.ones(SIZE // 2, dtype=np.uint8)
    del activations
    taken = meter.end()
    assert taken is not None
    assert taken == pytest.approx(SIZE // 2, rel=0.1)


def test_status_adds_up_by_kind() -> None:
    found = host.status()
    assert found["resident"] == found["anonymous"] + found["files"] + found["shared"]
    own = host.own_of(os.getpid())
    assert own is not None
    assert 0 < own <= found["resident"] * 1.02
    assert host.own_of(2**22 + 1) is None
