"""Prompts of real text have an exact length, and no two begin at the same token."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import Compose
from wp1.core.errors import ConfigError
from wp1.core.plan import plan
from wp1.workload import prompts, texts
from wp1.workload.prompts import PromptData


def test_the_bundled_book_reads_as_a_book() -> None:
    text = texts.read(None)
    assert text.startswith("Genesis 1\n\nIn the beginning God created the heaven and the earth. And the earth was")
    assert text.endswith("The grace of our Lord Jesus Christ be with you all. Amen.")
    assert len(text) > 4_000_000


def test_tokenising_in_pieces_loses_nothing() -> None:
    text = "\n\n".join(f"Paragraph {n} " + "x" * 3000 for n in range(100))
    assert bytes(texts.tokens(text, prompts.as_token_ids).tolist()).decode() == text + "\n\n"


@given(length=st.integers(1, 50), extra=st.integers(0, 300), seed=st.integers(0, 2**31))
def test_every_start_is_used_before_one_is_used_again(length: int, extra: int, seed: int) -> None:
    count = extra + 1
    starts = [texts.start_of(n, length, length + extra, seed) for n in range(count)]
    assert sorted(starts) == list(range(count))


def test_prompts_are_cut_to_length_and_differ(config: Compose) -> None:
    cfg = config(
        "workload=text", "workload.prompt_len=40", "workload.num_requests=20", "workload.shared_prefix=0.25",
        "experiment.same_tokens=false",
    )  # fmt: skip
    cell = plan(cfg)[0].cells[0]
    assert cell.name == "40-conc1"
    data = PromptData(49152, prompts.as_token_ids, text=np.arange(5000, dtype=np.int32))
    batches: Any = [[r.prompt for r in prompts.measured(cfg, cell, repeat, data)] for repeat in (0, 1)]
    all_prompts = [prompt for batch in batches for prompt in batch]
    all_prompts += [r.prompt for r in prompts.warmup_round(cfg, cell, 0, data, 2, 0)]
    assert {len(prompt) for prompt in all_prompts} == {40}
    assert len({tuple(prompt[10:]) for prompt in all_prompts}) == 42
    for batch in batches:
        assert len({tuple(prompt[:10]) for prompt in batch}) == 1
    # After the shared prefix the text is contiguous in the book.
    assert all(b - a == 1 for prompt in batches[0] for a, b in itertools.pairwise(prompt[10:]))


def test_a_text_that_is_too_short_or_unreadable_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"workload\.text_path"):
        texts.start_of(0, 10, 9, 0)
    (tmp_path / "t.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"t\.txt cannot be read as text"):
        texts.read(str(tmp_path / "t.txt"))
    (tmp_path / "t.txt").write_text(" \n")
    with pytest.raises(ConfigError, match=r"t\.txt is empty"):
        texts.read(str(tmp_path / "t.txt"))
