"""What is made of a configuration before any engine starts."""

from pathlib import Path

import pytest

from tests.conftest import Compose
from wp1.serving import models
from wp1.serving.engines import _kv_bytes_per_token


@pytest.mark.parametrize(("ranks", "times"), [(1, 1), (8, 1), (16, 2)])
def test_a_handoff_brings_each_rank_a_head_at_least(
    config: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: int, times: int
) -> None:
    """Of 16 ranks and 8 heads two ranks hold each head, and both get it."""
    monkeypatch.setenv("WP1_CACHE", str(tmp_path))
    model = models.prepare(config("model=llama31_8b_shape"))
    assert _kv_bytes_per_token(model, ranks) == times * 131_072
