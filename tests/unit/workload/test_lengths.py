"""Answer lengths follow their distribution and stay within the limits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wp1.config.schema import Workload
from wp1.workload.lengths import outputs
from wp1.workload.limits import longest


@pytest.mark.parametrize(
    ("distribution", "spread", "deviation"),
    [("uniform", 0.5, 0.5 / 3**0.5), ("normal", 0.2, 0.2), ("lognormal", 0.5, 0.5)],
)
def test_mean_and_standard_deviation_are_as_configured(distribution: str, spread: float, deviation: float) -> None:
    workload = Workload(output_len=200, output_distribution=distribution, output_spread=spread, output_max=2000)
    drawn = np.array(outputs(workload, 20_000, 3))
    assert drawn.mean() == pytest.approx(200, rel=0.02)
    assert drawn.std() == pytest.approx(200 * deviation, rel=0.05)


def test_most_lognormal_answers_are_short_and_a_few_long() -> None:
    workload = Workload(output_len=100, output_distribution="lognormal", output_spread=1.0, output_max=1000)
    drawn = np.array(outputs(workload, 20_000, 3))
    assert np.median(drawn) < 80
    assert (drawn > 300).mean() > 0.02


@given(
    distribution=st.sampled_from(["fixed", "uniform", "normal", "lognormal"]),
    mean=st.integers(1, 1000),
    spread=st.floats(0.01, 1),
    beyond=st.none() | st.integers(0, 1000),
    seed=st.integers(0, 1000),
)
def test_no_answer_is_empty_or_longer_than_the_longest(
    distribution: str, mean: int, spread: float, beyond: int | None, seed: int
) -> None:
    cut = None if beyond is None else mean + beyond
    workload = Workload(output_len=mean, output_distribution=distribution, output_spread=spread, output_max=cut)
    drawn = outputs(workload, 50, seed)
    assert 1 <= min(drawn) <= max(drawn) <= longest(workload)
    assert drawn == outputs(workload, 50, seed)


def test_fixed_lengths_are_all_equal() -> None:
    assert outputs(Workload(output_len=7), 3, 0) == [7, 7, 7]
