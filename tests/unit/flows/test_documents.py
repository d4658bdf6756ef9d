"""What a program can check in README and docs/: links, paths, configuration keys, names of tests, README's figures."""

import csv
import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from tests.documented import GROUPS, REPO
from wp1.main import CONF

PAGES = [REPO / "README.md", REPO / "CONTRIBUTING.md", REPO / "launch" / "README.md"]
PAGES += [*sorted((REPO / "docs").glob("*.md")), REPO / "docs" / "results" / "README.md"]
LINK = re.compile(r"\]\(([^)\s]+)\)")
PATH = re.compile(r"`((?:wp1|tests|conf|launch|docs|requirements)/[\w./-]+)`")
KEY = re.compile(rf"`((?:{'|'.join([*GROUPS, 'arms'])})(?:\.\w+)+)(?==|`)")
# Parts of the configuration that take any key.
NOWHERE = object()
FREE = re.compile(r"(backend\.engine|transfer\.environment|transfer\.extra|collectors)\.|tags\.")


def _text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def _anchors(page: Path) -> set[str]:
    """The anchors GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", _text(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.fixture(scope="module")
def composed() -> list[DictConfig]:
    """Configurations that together have every key."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return [compose("config", [option]) for option in ("scheduler=agg", "scheduler=disagg", "transfer=ipc")]


def _name(page: Path) -> str:
    return str(page.relative_to(REPO))


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(_text(page)):
        if link.startswith("http"):
            continue
        where, _, anchor = link.partition("#")
        target = (page.parent / where).resolve() if where else page
        assert target.exists(), link
        if anchor:
            assert anchor in _anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_paths_keys_and_tests_exist(page: Path, composed: list[DictConfig]) -> None:
    text = _text(page)
    for path in PATH.findall(text):
        assert (REPO / path.rstrip("/")).exists(), path
    for key in KEY.findall(text):
        if FREE.match(key):
            continue
        name = re.sub(r"^arms\.\w+", "scheduler", key)
        assert any(OmegaConf.select(cfg, name, default=NOWHERE) is not NOWHERE for cfg in composed), key
    sources = "".join(_text(path) for path in (REPO / "tests").rglob("*.py")) if "`test_" in text else ""
    for test in re.findall(r"`(test_\w+)`", text):
        assert f"def {test}(" in sources, test


def test_readme_has_two_screens_and_names_every_page() -> None:
    text = _text(REPO / "README.md")
    assert 120 <= len(text.splitlines()) <= 160
    for page in (REPO / "docs").glob("*.md"):
        assert f"(docs/{page.name})" in text, page.name


def test_the_table_of_readme_is_of_the_report_that_it_names() -> None:
    with (REPO / "docs/results/h100/e1/e1_by_length.csv").open(encoding="utf-8") as file:
        rows = {int(row["prompt_len"]): row for row in csv.DictReader(file)}

    def mean(row: dict[str, str], name: str) -> str:
        value, low, high = (float(row[name + end]) for end in ("", "_low", "_high"))
        digits = next(n for n, most in ((1, 100), (0, float("inf"))) if value < most)
        return f"{value:,.{digits}f} [{low:,.{digits}f}, {high:,.{digits}f}]"

    shown = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in _text(REPO / "README.md").splitlines()
        if re.match(r"\| [\d,]+ \|", line)
    ]
    assert len(shown) >= 5
    for cells in shown:
        row = rows[int(cells[0].replace(",", ""))]
        assert cells[1:] == [
            mean(row, "ttft_ms"),
            f"{float(row['prefill_tokens_per_s']):,.0f}",
            f"{float(row['mfu']):.0%}".replace("%", " %"),
            mean(row, "tpot_ms"),
            f"{float(row['mbu']):.0%}".replace("%", " %"),
        ]
