"""Prompts: seeded, the same everywhere, never shared between warm-up, repeats and requests; and datasets."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from tests.conftest import Compose
from wp1.core.errors import ConfigError
from wp1.core.plan import plan
from wp1.workload import dataset, prompts
from wp1.workload.prompts import Material

MATERIAL = Material(49152, prompts.as_token_ids)


def _random_cell(config: Compose, *overrides: str):
    cfg = config("workload=random", "workload.prompt_len=50", "workload.num_requests=4", *overrides)
    return cfg, plan(cfg)[0].cells[0]


def _asked(cfg: Any) -> Material:
    rows = dataset.read(cfg.dataset).rows
    return Material(49152, prompts.as_token_ids, [(row, np.array(prompts.as_token_ids(row.prompt))) for row in rows])


def test_random_prompts_have_the_exact_length_and_are_all_different(config: Compose) -> None:
    cfg, cell = _random_cell(config)
    every = [r for repeat in range(3) for r in prompts.measured(cfg, cell, repeat, MATERIAL)]
    every += [r for number in range(2) for r in prompts.warmup_round(cfg, cell, 0, MATERIAL, 2, number)]
    assert {len(request.prompt) for request in every} == {50}
    assert len({tuple(request.prompt) for request in every}) == len(every) == 16  # type: ignore[arg-type]
    assert len({request.request_id for request in every}) == 16


def test_requests_can_be_taken_again_and_are_the_same(config: Compose) -> None:
    cfg, cell = _random_cell(config)
    requests = prompts.measured(cfg, cell, 0, MATERIAL)
    assert list(requests) == list(requests) == requests[:]
    assert requests[-1] == list(requests)[3]
    with pytest.raises(IndexError):
        requests[4]


def test_the_same_seed_gives_the_same_prompts_on_any_machine(config: Compose) -> None:
    """Known digests: a change here means that runs of before cannot be compared with runs of now."""
    cfg, cell = _random_cell(config)
    ids = [request.prompt for request in prompts.measured(cfg, cell, 0, MATERIAL)]
    assert _digest(ids) == "147139b46bddd3ee"
    other, cell = _random_cell(config, "seed=43")
    assert [request.prompt for request in prompts.measured(other, cell, 0, MATERIAL)] != ids


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def test_a_shared_prefix_is_shared_within_a_repeat_and_nothing_else_is(config: Compose) -> None:
    cfg, cell = _random_cell(config, "workload.shared_prefix=0.4")
    first, second = ([r.prompt for r in prompts.measured(cfg, cell, repeat, MATERIAL)] for repeat in (0, 1))
    assert {len(prompt) for prompt in first + second} == {50}
    assert len({tuple(prompt[:20]) for prompt in first}) == 1
    assert len({tuple(prompt[:21]) for prompt in first}) == 4
    assert first[0][:20] != second[0][:20]


def test_questions_keep_their_seed_in_every_repeat(config: Compose) -> None:
    cfg = config()
    cell = plan(cfg)[0].cells[0]
    first, second = (list(prompts.measured(cfg, cell, repeat, _asked(cfg))) for repeat in (0, 1))
    assert [r.seed for r in first] == [r.seed for r in second]
    assert [r.prompt for r in first] == [r.prompt for r in second]
    assert len({r.seed for r in first}) == len(first) == 6


def test_questions_are_asked_again_from_the_start_when_more_are_wanted(config: Compose) -> None:
    cfg = config("workload.num_requests=8")
    requests = prompts.measured(cfg, plan(cfg)[0].cells[0], 0, _asked(cfg))
    assert len(requests) == len({r.request_id for r in requests}) == 8


def test_without_a_tokenizer_a_text_is_its_bytes(config: Compose) -> None:
    cfg = config("model=llama31_8b_shape")
    request = prompts.measured(cfg, plan(cfg)[0].cells[0], 0, _asked(cfg))[0]
    assert bytes(request.prompt).decode() == "What is the capital of France?"  # type: ignore[arg-type]


@given(length=st.integers(1, 3000), vocabulary=st.integers(2, 200_000), seed=st.integers(0, 2**31))
def test_random_ids_are_in_the_vocabulary(length: int, vocabulary: int, seed: int) -> None:
    ids = prompts.random_token_ids(length, vocabulary, seed)
    assert len(ids) == length
    assert 0 <= min(ids) <= max(ids) < vocabulary


def _dataset(path: Path, **changes: Any):
    return OmegaConf.create({"name": "file", "source": "file", "path": str(path), "limit": None} | changes)


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text('{"question": "Why?", "context": "Because."}\n\n{"id": 7, "question": "How?"}\n')
    rows = dataset.read(_dataset(path)).rows
    assert [(row.id, row.prompt) for row in rows] == [("q1", "Because.\n\nWhy?"), ("7", "How?")]
    assert len(dataset.read(_dataset(path, limit=1)).rows) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"q\.jsonl:1 is not JSON"),
        ('{"question": "a"}\n[1]', r"q\.jsonl:2 is not an object"),
        ('{"context": "a"}', r'q\.jsonl:1 has no "question"'),
        ('{"question": " "}', r'q\.jsonl:1 has no "question"'),
        ('{"question": "a", "context": 3}', r'q\.jsonl:1 has a "context"'),
        ('{"question": "a", "id": 1}\n{"question": "b", "id": 1}', r"q\.jsonl:2 repeats the id 1"),
        ("\n", r"q\.jsonl has no questions"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "q.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        dataset.read(_dataset(path))


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"q\.jsonl cannot be read"):
        dataset.read(_dataset(path))


def test_an_unknown_builtin_names_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"dataset\.name=other .* questions"):
        dataset.read(OmegaConf.create({"name": "other", "source": "builtin", "path": None, "limit": None}))
