"""A run's page in MLflow."""

from pathlib import Path

from wp1.tracking.page import report_html


def test_the_page_shows_what_a_model_wrote_as_text(tmp_path: Path) -> None:
    page = report_html("| a |\n| --- |\n| <script>alert(1)</script> |\n", tmp_path, "run-x")
    assert "<table>" in page and "&lt;script&gt;" in page and "<script" not in page
