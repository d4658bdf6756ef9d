"""Prompts: seeded, the same everywhere, never shared between warm-up, repeats and requests."""

import hashlib
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import Compose
from wp1.core.plan import plan
from wp1.workload import dataset, prompts
from wp1.workload.prompts import PromptData

DATA = PromptData(49152, prompts.as_token_ids)


def _random_cell(config: Compose, *overrides: str):
    cfg = config("workload=random", "workload.prompt_len=50", "workload.num_requests=4", *overrides)
    return cfg, plan(cfg)[0].cells[0]


def _asked(cfg: Any) -> PromptData:
    rows = dataset.read(cfg.dataset).rows
    return PromptData(49152, prompts.as_token_ids, [(row, np.array(prompts.as_token_ids(row.prompt))) for row in rows])


def test_random_prompts_have_the_exact_length_and_are_all_different(config: Compose) -> None:
    cfg, cell = _random_cell(config)
    requests = [r for repeat in range(3) for r in prompts.measured(cfg, cell, repeat, DATA)]
    requests += [r for number in range(2) for r in prompts.warmup_round(cfg, cell, 0, DATA, 2, number)]
    assert {len(request.prompt) for request in requests} == {50}
    assert len({tuple(request.prompt) for request in requests}) == len(requests) == 16  # type: ignore[arg-type]
    assert len({request.request_id for request in requests}) == 16


def test_requests_are_the_same_when_iterated_again(config: Compose) -> None:
    cfg, cell = _random_cell(config)
    requests = prompts.measured(cfg, cell, 0, DATA)
    assert list(requests) == list(requests) == requests[:]
    assert requests[-1] == list(requests)[3]
    with pytest.raises(IndexError):
        requests[4]


def test_the_same_seed_gives_the_same_prompts_on_any_machine(config: Compose) -> None:
    """Known digests: if they change, new runs cannot be compared with earlier ones."""
    cfg, cell = _random_cell(config)
    ids = [request.prompt for request in prompts.measured(cfg, cell, 0, DATA)]
    assert _digest(ids) == "147139b46bddd3ee"
    other, cell = _random_cell(config, "seed=43")
    assert [request.prompt for request in prompts.measured(other, cell, 0, DATA)] != ids


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def test_only_the_shared_prefix_is_shared_and_only_within_a_repeat(config: Compose) -> None:
    cfg, cell = _random_cell(config, "workload.shared_prefix=0.4")
    first, second = ([r.prompt for r in prompts.measured(cfg, cell, repeat, DATA)] for repeat in (0, 1))
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


def test_questions_repeat_from_the_start_if_there_are_too_few(config: Compose) -> None:
    cfg = config("workload.num_requests=8")
    requests = prompts.measured(cfg, plan(cfg)[0].cells[0], 0, _asked(cfg))
    assert len(requests) == len({r.request_id for r in requests}) == 8


def test_without_a_tokenizer_token_ids_are_the_text_s_bytes(config: Compose) -> None:
    cfg = config("model=llama31_8b_shape")
    request = prompts.measured(cfg, plan(cfg)[0].cells[0], 0, _asked(cfg))[0]
    assert bytes(request.prompt).decode() == "What is the capital of France?"  # type: ignore[arg-type]


@given(length=st.integers(1, 3000), vocabulary=st.integers(2, 200_000), seed=st.integers(0, 2**31))
def test_random_ids_are_in_the_vocabulary(length: int, vocabulary: int, seed: int) -> None:
    ids = prompts.random_token_ids(length, vocabulary, seed)
    assert len(ids) == length
    assert 0 <= min(ids) <= max(ids) < vocabulary
