"""How numbers are written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wp1.analysis.markdown import short


@pytest.mark.parametrize(
    ("value", "written"),
    [(1116.4, "1,116"), (123456.7, "123,457"), (99.94, "99.9"), (0.4567, "0.457"), (0.0000123, "0.0000123"),
     (0, "0"), (-4567.0, "-4,567"), (2.0, "2")],
)  # fmt: skip
def test_numbers_have_thousands_apart_and_no_exponent(value: float, written: str) -> None:
    assert short(value) == written


@given(st.floats(-1e15, 1e15))
def test_a_number_can_be_read_back_to_three_digits(value: float) -> None:
    assert "e" not in short(value)
    assert float(short(value).replace(",", "")) == pytest.approx(value, rel=6e-3)
