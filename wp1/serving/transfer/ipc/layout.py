"""Where the blocks of a KV cache are in memory, for every layout that vLLM produces.

The shape of vLLM's KV tensors depends on its version and on the attention backend: blocks first or K and V first, heads
before tokens or after, one allocation per layer or one for all. A copy only needs to know where the bytes of block n
are, and that follows from the tensors' strides once it is known which dimension counts blocks.
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
    """A contiguous part of every block: block n has `size` bytes at `offset + n * stride` of a storage."""

    storage: int  # index
    offset: int
    stride: int
    size: int


@dataclass(frozen=True)
class Layout:
    """A KV cache as regions of its storages, in the same order in every engine of a model.

    form: a description that must be equal on both sides for the bytes to mean the same.
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
    """The layout of a KV cache. caches: its tensor for each layer.

    page_bytes: bytes of a block in each layer, by vLLM's specification; num_blocks: blocks in the pool.
    Raises LayoutError if a tensor's strides do not agree with these.
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
    """Offsets, stride and size in bytes of one layer's regions, and a description of its form."""
    item = tensor.element_size()
    dims = [(size, stride * item) for size, stride in zip(tensor.shape, tensor.stride(), strict=True)]
    # A vLLM block may consist of several blocks of the attention kernel, so the dimension may be a multiple. If another
    # dimension happens to be a multiple too, the two cannot be told apart.
    counting = [d for d, (size, _) in enumerate(dims) if size % num_blocks == 0]
    shape = f"{name} is {tuple(tensor.shape)} with strides {tuple(tensor.stride())}"
    if len(counting) != 1:
        raise LayoutError(
            f"{shape}: {len(counting)} of its dimensions could count its {num_blocks} blocks; "
            "change backend.kv_cache_gib a little, or use transfer=nixl_push"
        )
    size, step = dims[counting[0]]
    parts = size // num_blocks
    rest = [dim for d, dim in enumerate(dims) if d != counting[0] and dim[0] > 1]
    inner = sorted((dim for dim in rest if dim[1] < step), key=lambda dim: dim[1])
    outer = [dim for dim in rest if dim[1] >= step]
    dense = item
    for count, stride in inner:
        if stride != dense:
            raise LayoutError(f"{shape}: a block has gaps; use transfer=nixl_push")
        dense *= count
    if parts > 1 and dense != step:
        raise LayoutError(f"{shape}: a block's {parts} parts are not adjacent; use transfer=nixl_push")
    start = int(tensor.storage_offset()) * item
    offsets = [
        start + sum(n * stride for n, (_, stride) in zip(at, outer, strict=True))
        for at in itertools.product(*(range(count) for count, _ in outer))
    ]
    block = dense * parts
    if block * len(offsets) != page_bytes:
        raise LayoutError(
            f"{shape}: a block has {block * len(offsets)} bytes and should have {page_bytes} by its specification; "
            "use transfer=nixl_push"
        )
    counts = "x".join(str(count) for count, _ in reversed(inner)) or "1"
    form = f"{str(tensor.dtype).removeprefix('torch.')} {math.prod(n for n, _ in outer)} x ({parts}x{counts})"
    # The order of dimensions is part of the form: 16 heads x 16 tokens and 16 tokens x 16 heads differ in nothing else.
    order = sorted((d for d, (count, _) in enumerate(dims) if count > 1), key=lambda d: -dims[d][1])
    return offsets, step * parts, block, f"{form} in order {' '.join(map(str, order))}"


def _natural(name: str) -> list[Any]:
    """Sort key that puts layers.2 before layers.10."""
    return [int(part) if part.isdigit() else part for part in name.split(".")]
