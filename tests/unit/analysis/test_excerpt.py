"""What a packet's page takes from a report."""

from wp1.analysis import excerpt


def test_the_key_parts_of_a_report() -> None:
    rows = "\n".join(f"| {n} |" for n in range(30))
    page = (
        "# E1: what?\n\n**completed** · `run`\n\n> **shared GPU**: shared.\n\n## Found\n\nIt costs.\n\n"
        f"![How](run/a.png)\n\n*How*\n\n| x |\n| --- |\n{rows}\n\nLater words.\n\n![No](run/b.png)\n"
    )
    words, table, picture = excerpt.key_parts(page.replace("run/", ""), "e1")
    assert words == "It costs."
    assert table.count("\n| ") == excerpt.MAX_ROWS + 1
    assert "10 more rows are in [the report](e1/report.md)" in table
    assert picture == "![How](e1/a.png)"


def test_every_arm_is_told_in_short_and_has_its_table() -> None:
    of_arms = [
        f"**{arm}**, GiB; reported: NVML.\n\n| {arm} |\n| --- |\n| {n} |" for n, arm in enumerate(("agg", "disagg"))
    ]
    page = (
        "# E5: where?\n\n**completed**\n\n## Where\n\n**agg**, 512 tokens: one engine. It is large.\n\n"
        "**disagg**, 512 tokens: two engines.\n\n"
        + "\n\n".join(of_arms)
        + "\n\n### Other\n\n| later |\n| --- |\n| 2 |\n"
    )
    parts = excerpt.key_parts(page, "e5")
    assert [part for part in parts if part.startswith("|")] == ["| agg |\n| --- |\n| 0 |", "| disagg |\n| --- |\n| 1 |"]
    assert excerpt.in_short({"e5": parts}).splitlines()[-1] == (
        "- [E5](#e5): **agg**, 512 tokens: one engine. It is large. **disagg**, 512 tokens: two engines."
    )


def test_a_long_beginning_ends_with_a_sentence() -> None:
    first = "A prompt of 131,064 tokens waited 10.5 s. "
    assert excerpt._beginning(first + "Much more is said. " * 40).endswith("Much more is said.")
    assert len(excerpt._beginning(first + "Much more is said. " * 40)) <= excerpt.IN_SHORT
    long = "One sentence " + "and on " * 100 + "to its end."
    assert excerpt._beginning(long + " Another.") == long


def test_lists_are_words_of_a_report() -> None:
    page = "# E2: what?\n\n**completed**\n\n- **1k**: fast.\n- **8k**: slow.\n\n| x |\n| --- |\n| 1 |\n"
    assert excerpt.key_parts(page, "e2")[0] == "- **1k**: fast.\n- **8k**: slow."


def test_only_numbered_experiments_are_in_capitals() -> None:
    assert [excerpt.titled(name) for name in ("e1", "e12", "mine", "e1x")] == ["E1", "E12", "mine", "e1x"]
