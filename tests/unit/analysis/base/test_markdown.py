"""How numbers are written, and that other people's words are text wherever they stand."""

import html
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from wp1.analysis.base.markdown import code, fence, inert, plain, short, table, text
from wp1.tracking.page import report_html


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


HOSTILE = (
    "![x](http://e.vil/a.png)", "[x](javascript:alert(1))", "<img src=x onerror=alert(1)>", "<https://e.vil>",
    "https://e.vil/x", "www.e.vil", "a@b.com", "[x]: http://e.vil", "![x][y]", "a | b | c", "`code`", "```\nx\n```",
    "# head", "- item", "> quote", "1. x", "***b***", "__b__", "_x_ foo_bar x_", "&lt;b&gt;", "&#60;img&#62;",
    "\\[x](http://e)", "\\\\[x](http://e)", "\\|\\\\|", "~~s~~", "$x$", "| a |\n|---|\n| b |", "<!-- c -->",
    "<script>alert(1)</script>", "](http://e)", "a\u2028b\x00c\u202ed", "x" * 500 + "|" * 10, "\\", "a\\", "===", "---",
    "+ x", "~~~", "`|`", "*", "~~~\n```\n~~~\n![x](http://e.vil)\n```", "````\n```\n````\n![x](http://e.vil)",
)  # fmt: skip
# HTML let in, as some viewers do.
VIEWER = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


@pytest.mark.parametrize("words", HOSTILE)
@pytest.mark.parametrize("form", ["{}", "- {}", "> **x**: {}", "a {} b", "# {}"])
def test_anybodys_words_are_shown_as_they_are(words: str, form: str) -> None:
    shown = re.sub("[\x00-\x1f\x7f-\x9f\u202a-\u202e]", "\ufffd", " ".join(words.split()))
    shown = shown if len(shown) <= 400 else shown[:399] + "…"
    rendered = re.sub(r"</?(p|ul|li|blockquote|h1|strong)>", "", VIEWER.render(form.format(text(words)))).strip()
    want = re.sub(r"^(- |# |> )", "", form.replace("**", "")).format(shown)
    assert html.unescape(rendered) == want


@pytest.mark.parametrize("words", HOSTILE)
def test_anybodys_words_stay_in_their_cell(words: str) -> None:
    rendered = VIEWER.render(table(["a", "b", "c"], [[text(words), code(words), "z"]], "lll"))
    assert len(re.findall("<td", rendered)) == 3
    assert set(re.findall(r"<(\w+)", rendered)) <= {"table", "thead", "tbody", "tr", "th", "td", "code"}


@pytest.mark.parametrize("words", HOSTILE)
def test_a_fence_holds_what_is_in_it(words: str) -> None:
    assert html.unescape(VIEWER.render(fence(f"a\n{words}\nb"))).count("<pre>") == 1
    assert not re.search("<(img|a|script)", VIEWER.render(fence(f"a\n{words}\nb") + "\n\nend").replace("<pre>", ""))


@pytest.mark.parametrize("words", HOSTILE)
def test_a_name_in_a_heading_is_no_link(words: str) -> None:
    assert not re.search("<(img|a|script)", VIEWER.render(f"## {plain(words)} against x\n\n{plain(words)}"))


@pytest.mark.parametrize("words", HOSTILE)
def test_a_page_from_a_folder_keeps_its_own_pictures_and_links_alone(words: str, tmp_path: Path) -> None:
    (tmp_path / "own.png").write_bytes(b"png")
    ours = "![c](id/own.png) and [records](../x/records.jsonl)\n\n```\npython -m wp1\n```\n\n**b** `c`"
    page = f"# T\n\n{words}\n\nq {words} r\n\n{ours}\n\n{words}\n"
    rendered = VIEWER.render(inert(page))
    found = re.findall(r"<(?:a|img|script)\b[^>]*>", rendered)
    assert found == ['<img src="id/own.png" alt="c" />', '<a href="../x/records.jsonl">']
    assert inert(ours) == ours
    published = report_html(inert(page).replace("(id/", "(plots/"), tmp_path, "<script>")
    assert re.findall(r"<img[^>]{0,30}", published)[0].startswith('<img src="data:image/png;base64,')
    assert len(re.findall("<img", published)) == 1
    # A page that was not made inert has no more of what leads out of it.
    for one in (published, report_html(page, tmp_path, "<script>")):
        assert not re.search('<a href|<script|e.vil/a.png"', one)


def test_an_interval_in_a_page_from_a_folder_stays_readable() -> None:
    page = "TTFT 7.4 [2.0, 12.8] ms, mean [95 %], attainment [−13.9, +13.9 points]"
    assert inert(page) == page
    for leading_out in ("[1](http://evil.example)", "[1]: http://evil.example", "[1][2]", "![1](//evil.example)"):
        assert "[1]" not in inert(leading_out)
