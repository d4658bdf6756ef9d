"""What tests of plots share."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from wp1.analysis.base import style


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The figures that are made, instead of files."""
    import matplotlib.pyplot as plt

    made: list[Any] = []
    monkeypatch.setattr(style, "save", lambda figure, path: made.append(figure))
    style.use()
    yield made
    plt.close("all")


def marks_of(axes: Any) -> dict[str, np.ndarray]:
    """By label, the places of the marks of each line with intervals, and that these stand on its marks."""
    found = {}
    for container in axes.containers:
        line, _, bars = container.lines
        found[str(container.get_label())] = line.get_xdata()
        for bar in bars:
            assert [segment[0][0] for segment in bar.get_segments()] == list(line.get_xdata())
    return found
