"""The copy on a GPU: every block of every layer in one launch. Imports triton, which only torch's GPU builds have."""

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]

# 8-byte words that a program moves at a time: 32 KiB, which is 16 vectors of 16 bytes per thread.
TILE = 4096
WARPS = 8


@triton.jit
def _copy_blocks(addresses, source, target, words: tl.constexpr, tile: tl.constexpr):
    """One program copies one block of one region: `words` words of 8 bytes.

    addresses: (regions, 4) of their address, their stride, our address, our stride in bytes; source, target: block
    numbers.
    """
    block = tl.program_id(0)
    row = addresses + tl.program_id(1) * 4
    source_address = tl.load(row) + tl.load(source + block) * tl.load(row + 1)
    target_address = tl.load(row + 2) + tl.load(target + block) * tl.load(row + 3)
    # vLLM's pages begin at multiples of 16 bytes; with this hint the compiler moves 16 bytes at a time.
    reading = tl.multiple_of(source_address, 16).to(tl.pointer_type(tl.int64))
    writing = tl.multiple_of(target_address, 16).to(tl.pointer_type(tl.int64))
    for begin in range(0, words, tile):
        word = begin + tl.arange(0, tile)
        inside = word < words
        tl.store(writing + word, tl.load(reading + word, mask=inside), mask=inside)


def launch(addresses: torch.Tensor, blocks: torch.Tensor, size: int) -> None:
    """Copies block blocks[0][n] to block blocks[1][n] on the current stream, `size` bytes in each region.

    addresses: int64 (regions, 4) as in the kernel; blocks: int64 (2, n); both on the GPU. Raises ValueError if `size`
    is not a multiple of 16.
    """
    if size % 16:
        raise ValueError(f"regions of {size} bytes cannot be copied: the size must be a multiple of 16")
    count = blocks.shape[1]
    if count:
        grid = (count, addresses.shape[0])
        _copy_blocks[grid](addresses, blocks[0], blocks[1], size // 8, TILE, num_warps=WARPS)  # type: ignore[index]
