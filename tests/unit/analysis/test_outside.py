"""Figures of collectors from outside, whatever they are: what is plain is shown, and as text."""

from wp1.analysis import outside


def test_plain_figures_are_rows_and_the_rest_is_left_out() -> None:
    page = outside.section(
        {
            "latency": {"own": 1},
            "list": [1],
            "text": "x",
            "mine": {"deep": {"n": 1.23456789, "none": None}, "words": "![x](http://y)", "many": [1, 2]},
        }
    )
    assert page.startswith("## Collector mine\n")
    assert "| deep.n | 1.23457 |" in page
    assert "many" not in page
    assert "![x](http" not in page
    assert outside.section({"list": [1], "latency": {"own": 1}}) == ""


def test_a_long_list_of_figures_is_cut() -> None:
    page = outside.section({"mine": {f"n{n}": n for n in range(60)}})
    assert page.endswith("The first 50 of 60; all are in summary.json.")


def test_what_is_not_made_is_one_sentence() -> None:
    assert outside.not_made({}) == ""
    assert outside.not_made({"not_made": ["a"]}).startswith(
        "> **Not recomputed**: a in `collectors` is not part of wp1"
    )
    assert "in `collectors` are not part of wp1" in outside.not_made({"not_made": ["a", "b"]})
