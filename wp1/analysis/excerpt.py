"""What a packet's page takes from each report: its first paragraphs, table and picture. Pure."""

import re
from pathlib import Path

from wp1.core import files

# Maximum length, in characters, of an experiment's summary at the top of the page.
IN_SHORT = 320
# Rows of a table on the page; the whole table is in the report.
MAX_ROWS = 20
# How a paragraph or table of a single arm begins.
_OF_AN_ARM = re.compile(r"\*\*[\w.-]+\*\*, ")


def titled(name: str) -> str:
    """An experiment's name in headings: E1 for e1, others unchanged."""
    return name.upper() if re.fullmatch(r"e\d+", name) else name


def key_parts_of(report: Path, name: str) -> list[str] | None:
    """`key_parts` of a report's file; None if the file is missing."""
    return key_parts(files.read_text(report), name) if report.is_file() else None


def key_parts(page: str, name: str, most_words: int = 12) -> list[str]:
    """A report's first paragraphs, first table and first picture, in this order, with links relative to the parent.

    If the first table is a single arm's, the tables of the other arms that follow are included.
    """
    blocks = [block.strip() for block in re.split(r"\n{2,}", page) if block.strip()]
    # The first two blocks are title and status; labels begin with `>`.
    body = [block for block in blocks[2:] if not block.startswith((">", "#", "```"))]
    pictures = [block for block in body if block.startswith("![")]
    tables = [block for block in body if block.startswith("|")]
    before_table = body[: body.index(tables[0])] if tables else body
    words = [block for block in before_table if not block.startswith(("![", "|"))]
    captions = {block.removeprefix("![").partition("]")[0] for block in pictures}
    words = [block for block in words if block.strip("*") not in captions][:most_words]
    key_table = [_shortened(tables[0], name)] if tables else []
    if tables and words and _OF_AN_ARM.match(words[-1]):
        after = body[body.index(tables[0]) + 1 :]
        for lead, rows in zip(after[::2], after[1::2], strict=False):
            if not (_OF_AN_ARM.match(lead) and rows.startswith("|")):
                break
            key_table += [lead, _shortened(rows, name)]
    picture = [re.sub(r"\]\(", f"]({name}/", pictures[0])] if pictures else []
    return [*words, *key_table, *picture]


def _shortened(rows: str, name: str) -> str:
    lines = rows.splitlines()
    if len(lines) <= MAX_ROWS + 2:
        return rows
    more = len(lines) - 2 - MAX_ROWS
    return "\n".join(lines[: MAX_ROWS + 2]) + f"\n\n{more} more rows are in [the report]({name}/report.md)."


def in_short(keys: dict[str, list[str] | None]) -> str:
    """The first sentences of each report; of a list, its last entry (the longest prompt's).

    If several arms have a paragraph each, the first sentences of each. keys: the key parts of each experiment's report.
    """
    lines = []
    for name, parts in keys.items():
        if not parts or parts[0].startswith("|"):
            continue
        of_arms = {found[0]: part for part in reversed(parts) if (found := _OF_AN_ARM.match(part))}
        paragraphs = [part for part in parts if part in of_arms.values()] or [
            parts[0].splitlines()[-1].removeprefix("- ")
        ]
        lines.append(f"- [{titled(name)}](#{name}): {' '.join(map(_beginning, paragraphs))}")
    return "## In short\n\n" + "\n".join(lines) if lines else ""


def _beginning(paragraph: str) -> str:
    """As many whole sentences as fit in IN_SHORT characters, at least one."""
    sentences = re.split(r"(?<=\.) (?=[A-Z])", paragraph)
    kept = sentences[:1]
    while len(kept) < len(sentences) and len(" ".join([*kept, sentences[len(kept)]])) <= IN_SHORT:
        kept.append(sentences[len(kept)])
    return " ".join(kept)
