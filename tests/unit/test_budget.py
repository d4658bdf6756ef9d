"""What is predicted of a cell from those before it."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wp1.budget import Repeat, left_of_begun, predict
from wp1.progress import Done


def closed(length: int | None, seconds: float = 0.0, requests: int = 4, concurrency: int = 1) -> Repeat:
    return Repeat(length, concurrency, 0.0, requests, seconds)


def open_loop(length: int | None, rate: float, seconds: float = 0.0, requests: int = 5) -> Repeat:
    return Repeat(length, 1, rate, requests, seconds)


def test_nothing_before_predicts_nothing() -> None:
    assert predict(closed(1024), []) is None


def test_one_length_before_is_taken_to_grow_in_proportion() -> None:
    assert predict(closed(4096), [closed(1024, 3.0)]) == pytest.approx(12.0)


@pytest.mark.parametrize("power", [0.0, 1.0, 1.6, 2.0])
def test_growth_goes_on_as_it_was_between_the_two_longest(power: float) -> None:
    before = [closed(n, (n / 1024) ** power) for n in (1024, 2048)]
    assert predict(closed(8192), before) == pytest.approx(8**power)


def test_growth_is_at_most_the_square() -> None:
    assert predict(closed(4096), [closed(1024, 1.0), closed(2048, 100.0)]) == pytest.approx(400.0)


def test_more_requests_take_longer() -> None:
    assert predict(closed(1024, requests=12), [closed(1024, 3.0, requests=4)]) == pytest.approx(9.0)


def test_an_open_loop_takes_its_span_and_a_request() -> None:
    """Four gaps at 0.5 requests/s are 8 s; one request of the closed loop took 2 s."""
    assert predict(open_loop(1024, 0.5), [closed(1024, 8.0, requests=4)]) == pytest.approx(10.0)


def test_only_what_is_beyond_the_span_grows_with_the_length() -> None:
    assert predict(open_loop(2048, 0.5), [open_loop(1024, 0.5, 11.0)]) == pytest.approx(8.0 + 2 * 3.0)


def test_the_same_load_is_believed_before_another() -> None:
    before = [closed(1024, 3.0), closed(1024, 1.0, concurrency=4)]
    assert predict(closed(2048, concurrency=4), before) == pytest.approx(2.0)


def test_prompts_without_a_length_take_what_they_took() -> None:
    assert predict(closed(None), [closed(None, 5.0)]) == pytest.approx(5.0)


repeats = st.builds(
    Repeat,
    st.none() | st.integers(1, 200_000),
    st.integers(1, 64),
    st.just(0.0) | st.floats(0.01, 100),
    st.integers(1, 1000),
    st.floats(0, 1e5),
)


@given(repeats, st.lists(repeats, min_size=1))
def test_a_prediction_is_a_time(wanted: Repeat, before: list[Repeat]) -> None:
    seconds = predict(wanted, before)
    assert seconds is not None
    assert math.isfinite(seconds) and seconds >= 0


def test_what_has_begun_is_promised_the_rest_of_its_repeats() -> None:
    done = [Done("agg", "a", 0, 4, 2.0, 1.0), Done("disagg", "a", 0, 4, 5.0, 0.0), Done("agg", "b", 0, 4, 1.0, 0.0)]
    assert left_of_begun(done, repeats_in_all=4) == pytest.approx(2 * 4.0 + 3 * 1.0)
