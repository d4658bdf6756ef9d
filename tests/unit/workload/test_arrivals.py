"""Arrivals have the rate, the burstiness and the ramp of their configuration, and depend on the seed alone."""

import hashlib
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from wp1.config.schema import Workload
from wp1.core.errors import ConfigError
from wp1.workload.arrivals import Schedule, process_of, schedule


def _arrivals(count: int, rate: float, process: str = "poisson", seed: int = 7, **settings: float | None) -> Schedule:
    return schedule(OmegaConf.structured(Workload(arrivals=process, **settings)), count, rate, seed)  # type: ignore[arg-type]


@given(
    process=st.sampled_from(["poisson", "constant", "gamma", "ramp"]),
    count=st.integers(1, 200),
    rate=st.floats(0.01, 1000),
    ramp_s=st.none() | st.floats(0.01, 100),
    ramp_from=st.floats(0, 100),
)
def test_arrivals_begin_at_zero_and_never_decrease(
    process: str, count: int, rate: float, ramp_s: float | None, ramp_from: float
) -> None:
    arrivals = _arrivals(count, rate, process, ramp_s=ramp_s, ramp_from=ramp_from)
    assert len(arrivals) == count
    assert arrivals.offsets[0] == 0
    assert np.isfinite(arrivals.offsets).all()
    assert (np.diff(arrivals.offsets) >= -1e-9).all()


def test_constant_arrivals() -> None:
    assert _arrivals(4, 2.0, "constant").offsets.tolist() == [0.0, 0.5, 1.0, 1.5]


@pytest.mark.parametrize(
    ("process", "burstiness", "variation"), [("poisson", 1, 1), ("gamma", 0.25, 2), ("gamma", 4, 0.5)]
)
def test_gaps_match_the_rate_and_the_burstiness(process: str, burstiness: float, variation: float) -> None:
    gaps = np.diff(_arrivals(50_000, 50.0, process, burstiness=burstiness).offsets)
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(variation, rel=0.03)


def test_another_seed_gives_different_arrivals() -> None:
    assert _arrivals(20, 50.0).offsets.tolist() == _arrivals(20, 50.0).offsets.tolist()
    assert _arrivals(20, 50.0).offsets.tolist() != _arrivals(20, 50.0, seed=8).offsets.tolist()


def test_a_ramp_grows_linearly_and_then_stays_constant() -> None:
    """From 10 to 50 requests/s in 100 s: 1,000 in the first half (20/s on average), 3,000 in all, then 50/s."""
    arrivals = _arrivals(8_000, 50.0, "ramp", ramp_from=10, ramp_s=100)
    assert arrivals.ramp_s == 100
    at = arrivals.offsets
    assert (at < 50).sum() == pytest.approx(1000, rel=0.1)
    assert (at < 100).sum() == pytest.approx(3000, rel=0.06)
    assert (at > 100).sum() / (at[-1] - 100) == pytest.approx(50, rel=0.06)


def test_a_ramp_without_a_length_lasts_to_the_end() -> None:
    arrivals = _arrivals(4_000, 50.0, "ramp", ramp_from=10)
    assert arrivals.offsets[-1] == pytest.approx(arrivals.ramp_s)
    assert arrivals.ramp_s == pytest.approx(4_000 / 30, rel=0.06)


@pytest.mark.parametrize(
    ("process", "digest"),
    [("poisson", "ecec1a690599c10b"), ("gamma", "effbb026f5813c6a"), ("ramp", "2ee00300b773485a")],
)
def test_the_same_seed_gives_the_same_arrivals_on_any_machine(process: str, digest: str) -> None:
    settings = {"gamma": {"burstiness": 0.5}, "ramp": {"ramp_from": 1.0, "ramp_s": 10.0}}.get(process, {})
    microseconds = [round(t * 1e6) for t in _arrivals(100, 5.0, process, seed=1, **settings).offsets]
    assert hashlib.sha256(json.dumps(microseconds).encode()).hexdigest()[:16] == digest


def _bunched(count: int, rate: float, workload: Any, *, bunch: int = 1) -> Schedule:
    return Schedule(np.arange(count) // bunch * bunch / rate)


def _refusing(rng: np.random.Generator) -> Schedule:
    raise RuntimeError("not today")


def test_a_function_from_outside_is_given_what_it_names_and_its_own_settings() -> None:
    node = OmegaConf.create({"arrivals": f"{__name__}._bunched", "bunch": 2})
    assert schedule(node, 4, 2.0, 7).offsets.tolist() == [0, 0, 1, 1]
    assert process_of(node.arrivals).settings().keys() == {"bunch"}


def test_a_function_from_outside_that_fails_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"_refusing failed for 4 requests at 2.* \(RuntimeError: not today\)"):
        schedule(OmegaConf.create({"arrivals": f"{__name__}._refusing"}), 4, 2.0, 7)
