"""Predictions of a cell's time from the cells before it."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wp1.core.progress import Done
from wp1.model.architecture import Architecture
from wp1.runner.budget import Repeat, at_least, floor_of, in_words, left_of_begun, predict


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


# SmolLM2-135M's.
SHAPE = Architecture(30, 576, 9, 3, 64, 1536, 49152, True, 2)
PEAKS = {"flops": 2e11, "bytes_per_s": 2e10}


def test_what_a_request_takes_at_least_is_its_flops_or_bytes_at_the_peaks() -> None:
    floor = floor_of(SHAPE, PEAKS, 1, 1)
    assert floor is not None
    assert floor(4096) == pytest.approx(SHAPE.prefill_flops(4096) / 2e11)
    # One token more is bound by memory.
    longer = floor_of(SHAPE, PEAKS, 2, 1)
    assert longer is not None
    assert longer(4096) - floor(4096) == pytest.approx(SHAPE.decode_bytes(4097) / 2e10)
    assert floor_of(None, PEAKS, 1, 1) is None
    assert floor_of(SHAPE, None, 1, 1) is None
    over_two = floor_of(SHAPE, PEAKS, 1, 2)
    assert over_two is not None and over_two(4096) == pytest.approx(floor(4096) / 2)


def test_attention_is_foreseen_from_short_prompts() -> None:
    """131,072 tokens would take 256 times as long as 512 if time were proportional, but 5,300 times by FLOPs."""
    floor = floor_of(SHAPE, PEAKS, 1, 1)
    assert floor is not None
    seconds = {n: 3 * floor(n) + 0.1 for n in (512, 1024, 131_072)}
    before = [closed(n, seconds[n], requests=1) for n in (512, 1024)]
    assert predict(closed(131_072, requests=1), before, floor) == pytest.approx(seconds[131_072])
    assert at_least(131_072, before, floor) == pytest.approx(seconds[131_072])
    assert (predict(closed(131_072, requests=1), before) or 0) < seconds[131_072] / 5


def test_nothing_is_for_certain_from_one_length_but_what_the_peaks_allow() -> None:
    """A time that is all overhead does not grow with the prompt."""
    floor = floor_of(SHAPE, PEAKS, 16, 1)
    assert floor is not None
    before = [closed(16, 100.0, requests=1)]
    assert at_least(8192, before, floor) == pytest.approx(100 + floor(8192) - floor(16))
    assert at_least(8192, before) is None
    assert at_least(8192, [open_loop(16, 1.0, 100.0)], floor) is None
    assert at_least(None, before, floor) is None
    assert at_least(16, before, floor) is None


def test_before_anything_is_measured_the_peaks_say_the_least() -> None:
    floor = floor_of(SHAPE, PEAKS, 16, 1)
    assert floor is not None
    assert predict(closed(512, requests=4), [], floor) == pytest.approx(4 * floor(512))
    assert predict(closed(None), [], floor) is None


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 s"), (45.4, "45 s"), (99, "99 s"), (130, "2 min"), (5000, "83 min"), (11_400, "3 h 10 min"),
     (10_800, "3 h"), (93_600, "26 h")],
)  # fmt: skip
def test_durations_in_words(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
