"""The parts of `tests.bench.device_copy` that need no GPU: which blocks it copies, the fit and the page."""

import itertools
import json
import random
from pathlib import Path

import pytest

from tests.bench import device_copy
from tests.bench.device_copy_page import BY_SIZE, fit, write_page


def test_neighbours_and_an_aged_pool() -> None:
    chance = random.Random(1)
    run = device_copy.blocks_of(512, "run", chance)
    assert run == list(range(run[0], run[0] + 512))
    assert 0 <= run[0] <= device_copy.NUM_BLOCKS - 512
    aged = device_copy.blocks_of(512, "aged", chance)
    assert len(set(aged)) == 512
    assert sum(b - a == 1 for a, b in itertools.pairwise(aged)) < 10


def test_the_cache_is_laid_out_as_the_8b_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_copy, "NUM_BLOCKS", 256)
    monkeypatch.setattr(device_copy, "SHAPE", (256, 2, 16, 8, 128))
    layout, tensors = device_copy.cache("cpu")
    assert layout.block_bytes == device_copy.BLOCK_BYTES == 16 * 131_072
    assert len(layout.regions) == len(tensors) == 32


def test_fit() -> None:
    first, rate = fit([(size, 0.3 + size / 375e6) for size in (1 << 21, 1 << 24, 1 << 27, 1 << 32)])
    assert first == pytest.approx(0.3)
    assert rate == pytest.approx(375)


def test_page(tmp_path: Path) -> None:
    (tmp_path / "facts.json").write_text(json.dumps({"machine": "two GPUs", "versions": "torch 2.14.0"}))
    rows = [
        {"what": what, "how": how, "blocks": count, "bytes": count << 21, "ms": 0.3 + (count << 21) / 375e6}
        for what, how, _ in BY_SIZE
        for count in (1, 64, 2048)
    ]
    rows += [
        {"what": "kernel, ipc, after a rest", "how": how, "blocks": 64, "bytes": 1 << 27, "ms": ms, "rest_s": 0.1}
        for how, ms in (("queued", 0.532), ("idle", 0.795))
    ]
    rows += [
        {"what": "in a row [64, 64]", "how": f"queued, number {n}", "blocks": 64, "bytes": 1 << 27, "ms": ms}
        for n, ms in ((1, 0.538), (2, 0.365))
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = write_page(tmp_path)
    assert (tmp_path / "copy.md").read_text() == page
    assert "two GPUs; torch 2.14.0" in page
    assert "| fit: ms beyond bytes |  | 0.300 |" in page
    assert "| 100 | 0.532 | 0.795 |" in page
    assert "| [64, 64] | 0.538, 0.365 |" in page
