"""Where the blocks of a KV cache lie in memory, for every layout that vLLM hands out.

vLLM changes the shape of its KV tensors from version to version and from one attention backend to another: blocks
first or K and V first, heads before tokens or after, one allocation a layer or one for all. Bytes are bytes: what a
copy needs to know is where the bytes of block n are, and that follows from the tensors' strides once it is known which
dimension counts blocks.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from wp1.core.errors import WP1Error


class LayoutError(WP1Error):
    """A KV cache that cannot be moved block by block."""


@dataclass(frozen=True, slots=True)
class Region:
    """Bytes that every block has in one piece: block n is `size` bytes at `offset + n * stride` of a storage."""

    storage: int  # which
    offset: int
    stride: int
    size: int


@dataclass(frozen=True)
class Layout:
    """A KV cache as regions of its storages, in an order that is the same for every engine of a model.

    form: what must be equal on both sides for bytes to mean the same, in words.
    """

    storages: list[torch.UntypedStorage]
    regions: list[Region]
    num_blocks: int
    form: str

    @property
    def block_bytes(self) -> int:
        """Bytes of one block over all layers, on this rank."""
        return sum(region.size for region in self.regions)


def layout_of(caches: Mapping[str, torch.Tensor], page_bytes: Mapping[str, int], num_blocks: int) -> Layout:
    """The layout of the KV tensors by layer.

    page_bytes: bytes of a block of each layer, by vLLM's specification; num_blocks: blocks of the pool.
    Raises LayoutError where a tensor's strides do not agree with those.
    """
    storages: dict[int, torch.UntypedStorage] = {}
    regions: dict[Region, None] = {}  # layers may share a tensor
    forms: dict[str, int] = {}
    for name in sorted(caches, key=_natural):
        tensor = caches[name]
        storage = tensor.untyped_storage()
        storages.setdefault(storage.data_ptr(), storage)
        index = list(storages).index(storage.data_ptr())
        offsets, stride, size, form = _of_tensor(name, tensor, page_bytes[name], num_blocks)
        regions.update(dict.fromkeys(Region(index, offset, stride, size) for offset in offsets))
        forms[form] = forms.get(form, 0) + 1
    form = ", ".join(f"{count} layers of {form}" for form, count in forms.items())
    return Layout(list(storages.values()), list(regions), num_blocks, form)


def _of_tensor(name: str, tensor: torch.Tensor, page_bytes: int, num_blocks: int) -> tuple[list[int], int, int, str]:
    """Offsets, stride and size in bytes of one layer's regions, and its form in words."""
    item = tensor.element_size()
    dims = [(size, stride * item) for size, stride in zip(tensor.shape, tensor.stride(), strict=True)]
    # A block of vLLM's may be several of the attention kernel's. A dimension that counts something else may happen to
    # be as long, and then nothing tells which is which.
    counting = [d for d, (size, _) in enumerate(dims) if size % num_blocks == 0]
    shape = f"{name} is {tuple(tensor.shape)} with strides {tuple(tensor.stride())}"
    if len(counting) != 1:
        raise LayoutError(
            f"{shape}: {len(counting)} of its dimensions could count its {num_blocks} blocks; "
            "a backend.kv_cache_gib a little different, or transfer=nixl_push"
        )
    size, step = dims[counting[0]]
    parts = size // num_blocks
    rest = [dim for d, dim in enumerate(dims) if d != counting[0] and dim[0] > 1]
    inner = sorted((dim for dim in rest if dim[1] < step), key=lambda dim: dim[1])
    outer = [dim for dim in rest if dim[1] >= step]
    dense = item
    for count, stride in inner:
        if stride != dense:
            raise LayoutError(f"{shape}: a block has gaps; transfer=nixl_push")
        dense *= count
    if parts > 1 and dense != step:
        raise LayoutError(f"{shape}: a block's {parts} parts do not lie side by side; transfer=nixl_push")
    start = int(tensor.storage_offset()) * item
    offsets = [
        start + sum(n * stride for n, (_, stride) in zip(at, outer, strict=True))
        for at in itertools.product(*(range(count) for count, _ in outer))
    ]
    block = dense * parts
    if block * len(offsets) != page_bytes:
        raise LayoutError(f"{shape}: a block has {block * len(offsets)} bytes, and {page_bytes} by its specification")
    counts = "x".join(str(count) for count, _ in reversed(inner)) or "1"
    form = f"{str(tensor.dtype).removeprefix('torch.')} {math.prod(n for n, _ in outer)} x ({parts}x{counts})"
    # Sixteen heads of sixteen tokens and sixteen tokens of sixteen heads differ in nothing else.
    order = sorted((d for d, (count, _) in enumerate(dims) if count > 1), key=lambda d: -dims[d][1])
    return offsets, step * parts, block, f"{form} in order {' '.join(map(str, order))}"


def _natural(name: str) -> list[Any]:
    """layers.2 before layers.10."""
    return [int(part) if part.isdigit() else part for part in name.split(".")]
