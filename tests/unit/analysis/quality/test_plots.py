"""The plots of quality: what they make of records and samples."""

from pathlib import Path
from typing import Any

from tests.unit.analysis.conftest import marks_of
from wp1.analysis.quality import plots as quality_plots


def test_scores_and_perplexity_stand_at_their_lengths(figures: list[Any], tmp_path: Path) -> None:
    spread = {"mean": 50.0, "low": 40.0, "high": 60.0, "n": 3}
    arms = {
        arm: {
            "by_length": [spread | {"bucket": length} for length in (1024, 2048)],
            "perplexity": [spread | {"to": length, "texts": 3} for length in (1024, 2048)],
        }
        for arm in ("yarn", "unscaled", "third")
    }
    both = [{"to": length, "texts": 2, "a": spread | {"texts": 2}} for length in (1024, 2048)]
    quality_plots._lengths(arms, tmp_path / "x.png", "")
    quality_plots._perplexity(arms, both, tmp_path / "y.png", "")
    for figure, count in zip(figures, (3, 4), strict=True):
        assert [list(x) for x in marks_of(figure.axes[0]).values()] == [[1024, 2048]] * count
