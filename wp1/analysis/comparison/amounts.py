"""The figures of a comparison's row as text: by how much a metric changed, and its values. Pure."""

from wp1.analysis.base.markdown import ms, short
from wp1.analysis.comparison.phases import Row


def size(row: Row) -> float:
    """The size of a change, to sort by: relative to a, or absolute for shares and if a is 0."""
    return abs(row["delta"]) if row["unit"] == "share" or row["ratio"] is None else abs(row["ratio"] - 1)


def amount(row: Row) -> str:
    """The size of a change relative to a, such as `21 %`; for shares in percentage points."""
    if row["unit"] == "share":
        return f"{abs(row['delta']) * 100:.0f} points"
    if row["ratio"] is None:
        return _of_unit(abs(row["delta"]), row["unit"])
    if row["ratio"] >= 3:
        return f"a factor of {row['ratio']:.1f}"
    return f"{abs(row['ratio'] - 1) * 100:.{0 if abs(row['ratio'] - 1) >= 0.1 else 1}f} %"


def value(row: Row, side: str) -> str:
    """The value of side "a" or "b" with its unit."""
    return f"{row[side] * 100:.0f} %" if row["unit"] == "share" else _of_unit(row[side], row["unit"])


def _of_unit(value: float, unit: str) -> str:
    return f"{ms(value) if unit == 'ms' else short(value)} {unit}"
