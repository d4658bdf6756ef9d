"""wp1's sizes from config.json against vLLM's own KV cache specification, for published models."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests import REPO
from tests.published import MODELS
from wp1.model import kv_cache


@pytest.fixture(scope="module")
def by_vllm() -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.engine.vllm_kv_specs"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=REPO,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_every_published_model_is_included(by_vllm: dict[str, Any]) -> None:
    assert len(by_vllm) >= 30
    assert set(by_vllm) == set(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_bytes_and_parameters_match_vllm(by_vllm: dict[str, Any], name: str) -> None:
    model, expected = MODELS[name], by_vllm[name]
    # Checks the typed-in configuration against the published parameter count.
    assert expected["parameters"] / 1e9 == pytest.approx(model.billions, rel=0.02)
    ours = kv_cache.of(model.config, 2)
    assert ours.token_bytes == expected["token_bytes"] == model.token_bytes
    assert ours.state_bytes == expected["state_bytes"] == model.state_bytes
