import pytest

from wp1.analysis.base.cells import ordered, parse


@pytest.mark.parametrize(
    ("name", "length", "rate", "words"),
    [
        ("1024-rate0.5", 1024, 0.5, "1,024 tokens at 0.5 requests/s"),
        ("256-conc1", 256, 0, "256 tokens one at a time"),
        ("256-rate0", 256, 0, "256 tokens one at a time"),
        ("32768-conc4", 32768, 0, "32,768 tokens 4 at a time"),
        ("256-rate1e-05", 256, 1e-5, "256 tokens at 1e-05 requests/s"),
        ("my-questions-rate2", None, 2, "my-questions at 2 requests/s"),
        ("conv_trace-speed2", None, 0, "conv_trace at 2 times the recorded speed"),
        ("conv_trace-speed1", None, 0, "conv_trace as recorded"),
        ("something", None, 0, "something"),
    ],
)
def test_a_name_says_length_and_load(name: str, length: int | None, rate: float, words: str) -> None:
    cell = parse(name)
    assert (cell.prompt_len, cell.rate, cell.words) == (length, rate, words)


def test_order_is_by_number_and_each_name_comes_once() -> None:
    names = ["1024-conc1", "256-rate10", "256-rate9", "256-conc1", "other", "256-conc1"]
    assert ordered(names) == ["256-conc1", "256-rate9", "256-rate10", "1024-conc1", "other"]
