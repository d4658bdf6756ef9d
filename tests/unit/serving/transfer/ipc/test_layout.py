"""For each of vLLM's layouts, the regions are the bytes of the tensor's block."""

import pytest
import torch

from wp1.serving.transfer.ipc.layout import Layout, LayoutError, layout_of

BLOCKS, HEADS, TOKENS, DIM = 37, 3, 16, 8
PAGE = 2 * HEADS * TOKENS * DIM * 2  # K and V, two bytes per element
MLA_PAGE = TOKENS * 24 * 2


def _numbered(*shape: int) -> torch.Tensor:
    count = int(torch.tensor(shape).prod())
    return torch.arange(count, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).reshape(shape)


def _bytes_of(layout: Layout, block: int) -> bytes:
    memory = [bytes(torch.empty(0, dtype=torch.uint8).set_(s).tolist()) for s in layout.storages]  # type: ignore[call-overload]
    places = [(r.storage, r.offset + block * r.stride, r.size) for r in layout.regions]
    return b"".join(memory[storage][at : at + size] for storage, at, size in places)


def _expected(tensor: torch.Tensor) -> bytes:
    """A block's part of a tensor, K before V, in the order of memory."""
    return bytes(tensor.contiguous().view(torch.uint8).flatten().tolist())


def test_kv_first() -> None:
    cache = _numbered(2, BLOCKS, TOKENS, HEADS, DIM)
    layout = layout_of({"layers.0": cache}, {"layers.0": PAGE}, BLOCKS)
    assert len(layout.regions) == 2
    assert layout.block_bytes == PAGE
    assert _bytes_of(layout, 5) == _expected(cache[:, 5])


def test_blocks_first() -> None:
    cache = _numbered(BLOCKS, 2, TOKENS, HEADS, DIM)
    layout = layout_of({"layers.0": cache}, {"layers.0": PAGE}, BLOCKS)
    assert [region.size for region in layout.regions] == [PAGE]
    assert _bytes_of(layout, BLOCKS - 1) == _expected(cache[-1])


def test_heads_before_tokens_in_memory() -> None:
    memory = _numbered(BLOCKS, HEADS, TOKENS, 2 * DIM)
    layout = layout_of({"layers.0": memory.transpose(1, 2)}, {"layers.0": PAGE}, BLOCKS)
    assert _bytes_of(layout, 7) == _expected(memory[7])
    plain = layout_of({"layers.0": _numbered(BLOCKS, TOKENS, HEADS, 2 * DIM)}, {"layers.0": PAGE}, BLOCKS)
    assert plain.form != layout.form


def test_order_of_equal_dimensions_is_part_of_the_form() -> None:
    page = 16 * 16 * 8 * 2
    memory = torch.zeros(BLOCKS, 16, 16, 8, dtype=torch.bfloat16)
    tokens_first = layout_of({"a": memory}, {"a": page}, BLOCKS)
    heads_first = layout_of({"a": memory.transpose(1, 2)}, {"a": page}, BLOCKS)
    assert tokens_first.regions == heads_first.regions
    assert tokens_first.form != heads_first.form


def test_one_allocation_for_all_layers() -> None:
    memory = _numbered(BLOCKS, 4, 2, TOKENS, HEADS, DIM)
    caches = {f"layers.{n}.attn": memory[:, n] for n in range(4)}
    layout = layout_of(caches, dict.fromkeys(caches, PAGE), BLOCKS)
    assert len(layout.storages) == 1
    assert layout.block_bytes == 4 * PAGE
    assert _bytes_of(layout, 9) == _expected(memory[9])


def test_blocks_of_the_kernel_are_smaller_than_vllms() -> None:
    cache = _numbered(2, BLOCKS * 2, TOKENS // 2, HEADS, DIM)
    layout = layout_of({"layers.0": cache}, {"layers.0": PAGE}, BLOCKS)
    assert _bytes_of(layout, 5) == _expected(cache[:, 10:12])


def test_mla_has_a_single_tensor() -> None:
    cache = _numbered(BLOCKS, TOKENS, 24)
    layout = layout_of({"layers.0": cache}, {"layers.0": MLA_PAGE}, BLOCKS)
    assert _bytes_of(layout, 3) == _expected(cache[3])


def test_layers_are_in_order_and_shared_ones_count_once() -> None:
    caches = {f"layers.{n}": torch.zeros(BLOCKS, TOKENS, 24, dtype=torch.bfloat16) for n in (10, 2)}
    caches["layers.11"] = caches["layers.2"]
    layout = layout_of(caches, dict.fromkeys(caches, MLA_PAGE), BLOCKS)
    assert [storage.data_ptr() for storage in layout.storages] == [
        caches[name].untyped_storage().data_ptr() for name in ("layers.2", "layers.10")
    ]
    assert layout.block_bytes == 2 * MLA_PAGE


def test_eight_bits() -> None:
    cache = torch.zeros(2, BLOCKS, TOKENS, HEADS, DIM, dtype=torch.float8_e4m3fn)
    layout = layout_of({"layers.0": cache}, {"layers.0": PAGE // 2}, BLOCKS)
    assert "float8_e4m3fn" in layout.form


@pytest.mark.parametrize(
    ("cache", "page", "words"),
    [
        (torch.zeros(2, 16, 16, 3, 8), 2 * 16 * 3 * 8 * 4, "2 of its dimensions could count its 16 blocks"),
        # There are as many heads as blocks, and the kernel splits blocks differently.
        (torch.zeros(2, 32, 8, 16, 8), 2 * 8 * 16 * 16 * 4, "could count its 16 blocks"),
        (torch.zeros(2, 5, 4, 3, 8), 100, "0 of its dimensions"),
        (torch.zeros(2, 16, 4, 3, 8)[..., :5], 2 * 4 * 3 * 5 * 4, "a block has gaps"),
        (torch.zeros(2, 32, 2, 4, 3, 8)[:, :, 0], 2 * 2 * 4 * 3 * 8 * 4, "2 parts are not adjacent"),
        (torch.zeros(2, 16, 4, 3, 8), 1234, "1234 by its specification"),
    ],
)
def test_layouts_that_cannot_be_moved_are_refused(cache: torch.Tensor, page: int, words: str) -> None:
    with pytest.raises(LayoutError, match=words) as refused:
        layout_of({"layers.0": cache}, {"layers.0": page}, 16)
    assert "layers.0" in str(refused.value)
    assert "\n" not in str(refused.value)
