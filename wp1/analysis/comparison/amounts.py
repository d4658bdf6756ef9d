"""A row of a comparison in words: how much a metric changed, and what it was. Pure."""

from wp1.analysis.base.markdown import ms, short
from wp1.analysis.comparison.phases import Row


def size(row: Row) -> float:
    return abs(row["delta"]) if row["unit"] == "share" or row["ratio"] is None else abs(row["ratio"] - 1)


def amount(row: Row) -> str:
    """How much, relative to a; of shares in points."""
    if row["unit"] == "share":
        return f"{abs(row['delta']) * 100:.0f} points"
    if row["ratio"] is None:
        return _of_unit(abs(row["delta"]), row["unit"])
    if row["ratio"] >= 3:
        return f"a factor of {row['ratio']:.1f}"
    return f"{abs(row['ratio'] - 1) * 100:.{0 if abs(row['ratio'] - 1) >= 0.1 else 1}f} %"


def value(row: Row, side: str) -> str:
    return f"{row[side] * 100:.0f} %" if row["unit"] == "share" else _of_unit(row[side], row["unit"])


def _of_unit(value: float, unit: str) -> str:
    return f"{ms(value) if unit == 'ms' else short(value)} {unit}"
