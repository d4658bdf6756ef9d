"""A tenth of `make stress`: no block lost, none released twice, every block the one that it should be."""

import pytest

from tests.stress.ipc import stress


@pytest.mark.parametrize(
    ("handoffs", "settings"),
    [
        (800, {"num_blocks": 130}),
        (200, {"num_blocks": 130, "ranks": 2, "verify": True, "cached": 0.0}),
    ],
    ids=["one rank", "two ranks, verified"],
)
def test_handoffs_of_random_sizes_with_random_aborts(handoffs: int, settings: dict) -> None:
    result = stress(handoffs, limit_s=120, seed=handoffs, **settings)
    assert result["well"] > handoffs / 3
    assert result["given up"] > handoffs / 10
    assert result["preempted in prefill"] > 0 or handoffs < 500  # too few for what comes once in fifty steps
