"""Copies on a CPU, compared with numpy, for any blocks."""

import itertools
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wp1.serving.transfer.ipc.copying import HostCopier, begins_of
from wp1.serving.transfer.ipc.exports import Peer, PeerError
from wp1.serving.transfer.ipc.layout import Layout, layout_of

BLOCKS, PAGE = 24, 2 * 16 * 3 * 8 * 2
LAYERS = ("layers.0", "layers.1")


def _caches() -> dict[str, torch.Tensor]:
    return {name: torch.randint(0, 30_000, (2, BLOCKS, 16, 3, 8), dtype=torch.int16) for name in LAYERS}


def _layout(caches: dict[str, torch.Tensor]) -> Layout:
    return layout_of(caches, dict.fromkeys(caches, PAGE), BLOCKS)


def _peer(layout: Layout) -> Peer:
    memory = [torch.empty(0, dtype=torch.uint8).set_(s).numpy() for s in layout.storages]  # type: ignore[call-overload]
    return Peer("prefill-0", "prefill-0.0", layout.regions, BLOCKS, memory, pidfd=7)


@pytest.mark.parametrize("count", [0, 1, 5, BLOCKS])
def test_copies_as_numpy_would(count: int) -> None:
    theirs, ours = _caches(), _caches()
    chance = random.Random(count)
    source, target = chance.sample(range(BLOCKS), count), chance.sample(range(BLOCKS), count)
    expected = {name: ours[name].numpy().copy() for name in LAYERS}
    for name in LAYERS:
        expected[name][:, target] = theirs[name].numpy()[:, source]
    seconds, runs = HostCopier(_layout(ours)).copy(_peer(_layout(theirs)), source, target)
    assert all(np.array_equal(ours[name].numpy(), expected[name]) for name in LAYERS)
    assert seconds >= 0
    assert runs == len(begins_of(source, target)) <= count


def test_a_block_number_out_of_range_is_an_error() -> None:
    ours = _layout(_caches())
    with pytest.raises(PeerError, match=f"block {BLOCKS} and has {BLOCKS}"):
        HostCopier(ours).copy(_peer(_layout(_caches())), [BLOCKS - 1, BLOCKS], [0, 1])


PAIRS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=20)


@given(PAIRS)
def test_runs_are_the_same_blocks_in_the_same_order(pairs: list[tuple[int, int]]) -> None:
    source, target = [here for here, _ in pairs], [there for _, there in pairs]
    begins = [*begins_of(source, target), len(pairs)]
    runs = [(*pairs[n], end - n) for n, end in itertools.pairwise(begins)] if pairs else []
    assert [(here + n, there + n) for here, there, count in runs for n in range(count)] == pairs
    assert all(a[0] + a[2] != b[0] or a[1] + a[2] != b[1] for a, b in itertools.pairwise(runs))


def test_runs_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        begins_of([1, 2], [1])


def _change_byte(caches: dict[str, torch.Tensor]) -> None:
    caches["layers.1"][1, 5, 15, 2, 7] ^= 1


def _swap_layers(caches: dict[str, torch.Tensor]) -> None:
    first, second = caches["layers.0"].clone(), caches["layers.1"].clone()
    caches["layers.0"].copy_(second)
    caches["layers.1"].copy_(first)


def _swap_bytes(caches: dict[str, torch.Tensor]) -> None:
    block = caches["layers.0"][0, 5]
    block.copy_(block.flip(0))


def _swap_blocks(caches: dict[str, torch.Tensor]) -> None:
    for cache in caches.values():
        cache[:, [4, 5]] = cache[:, [5, 4]]


@pytest.mark.parametrize("change", [_change_byte, _swap_layers, _swap_bytes, _swap_blocks])
def test_a_checksum_detects_a_change_of(change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    caches = _caches()
    copier = HostCopier(_layout(caches))
    before = copier.checksum([4, 5, 9])
    assert copier.checksum([4, 5, 9]) == before != copier.checksum([5, 4, 9])
    change(caches)
    assert copier.checksum([4, 5, 9]) != before


def test_a_checksum_is_of_content_and_not_of_place() -> None:
    theirs, ours = _caches(), _caches()
    copier = HostCopier(_layout(ours))
    copier.copy(_peer(_layout(theirs)), [3, 8], [20, 1])
    assert copier.checksum([20, 1]) == HostCopier(_layout(theirs)).checksum([3, 8])
