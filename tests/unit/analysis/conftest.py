"""What tests of plots share."""

from collections.abc import Iterator
from typing import Any

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
