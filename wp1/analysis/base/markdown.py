"""Tables, numbers and foreign text as a report writes them; unknown values are a dash.

Text from a model, a data set or a folder stays text: none of it becomes a picture, a link, HTML or the end of a table.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Any

Unit = tuple[str, int]  # its name, bytes
MIB: Unit = ("MiB", 1 << 20)
GIB: Unit = ("GiB", 1 << 30)


def table(header: list[str], rows: list[list[Any]], align: str) -> str:
    """A markdown table; `align` has an l or r for each column."""
    rule = ["---:" if a == "r" else "---" for a in align]
    lines = [header, rule, *[["—" if cell is None else str(cell) for cell in row] for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


# Characters that a terminal or browser interprets instead of showing: controls, and those that change text direction.
_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
# Characters that Markdown interprets, anywhere or in this position: brackets, emphasis, and addresses, including bare
# ones that viewers turn into links, such as example.org.
_MARKS = re.compile(
    r"[\\`*\[\]|$]|(?<![^\W_])_|_(?![^\W_])|&(?=#?\w+;)|~~|^[#>+\-=~](?=[\s#>+\-=~]|$)|^\d+[.)](?=\s|$)|//|@|"
    r"(?<=\w)\.(?=(?:[a-z]{2}|com|org|net|edu|gov|info|biz|pro|web|name|shop|aero|asia|coop)(?!\w))|(?<=www)\.",
    re.IGNORECASE,
)


def text(words: str, most: int = 400) -> str:
    """Foreign text for a table cell or a line, escaped so that it is shown literally and cut to `most` characters."""
    flat = _CONTROLS.sub("�", " ".join(words.split()))
    cut = flat if len(flat) <= most else flat[: most - 1] + "…"
    escaped = _MARKS.sub(lambda found: re.sub(r"([^\w\s]|_)", r"\\\1", found[0]), cut)
    return escaped.replace("<", "&lt;")


def code(words: str) -> str:
    """A name in backticks, for a line or a table cell."""
    flat = _CONTROLS.sub("�", " ".join(words.split()))
    return f"`{flat.replace('`', chr(39)).replace('|', '¦') or ' '}`"


def fence(words: str) -> str:
    """A fenced block, which shows lines literally, such as a command."""
    shown = _CONTROLS.sub("�", words)
    longest = max((len(run) for run in re.findall("`+", shown)), default=0)
    marks = "`" * max(3, longest + 1)
    return f"{marks}\n{shown}\n{marks}"


def plain(words: str) -> str:
    """A name from a command line for headings and sentences: characters that Markdown interprets become dots."""
    flat = _CONTROLS.sub("·", " ".join(words.split()))
    return re.sub(r"[<>`*|\\!@]|\](?=[\[(:])|://|(?i:www\.)", "·", flat)


# What wp1's own pages contain: an escaped character, a fence, an interval such as [1.2, 3.4], and a link or picture
# whose target is a path next to the page.
_OURS = re.compile(
    r"(?P<kept>\\[!-/:-@\[-`{-~]|(?:^|(?<=\n))```\n(?:(?!```).*\n)*?```(?=\n|$)|"
    r"\[[\d.,%\u2212+ -]+(?: points)?\](?![\[(:])|"
    r"!?\[[^\[\]\n]*\]\((?:\{run\}|#)?(?!/)[\w./%?=-]*\))|"
    r"(?P<foreign><|!?\[|\]|://|(?i:www\.)|(?:^|(?<=\n))[ >]*(?:```+|~~~+))"
)


def inert(page: str) -> str:
    """A page from a folder, which anyone may have written, without anything that leads out of it.

    Links and pictures stay if they point to files next to the page; others, addresses and HTML become text.
    """

    def shown(found: re.Match[str]) -> str:
        if found["kept"] is not None:
            return found["kept"]
        return "&lt;" if found["foreign"] == "<" else re.sub(r"([^\w\s])", r"\\\1", found["foreign"])

    return _OURS.sub(shown, page)


def ms(value: float | None) -> str | None:
    """Milliseconds, to about three digits."""
    if value is None:
        return None
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 1 else f"{value:.2f}"


def signed_ms(value: float) -> str:
    """A change in ms."""
    return f"{'−' if value < 0 else '+'}{ms(abs(value))} ms"


def with_interval(figure: Mapping[str, Any] | None, form: Callable[[float], str | None]) -> str | None:
    """A figure of `wp1.stats.samples` as value [low, high]; `form` writes each number.

    An interval without width, as from a single request, is left out: it would suggest certainty.
    """
    if figure is None:
        return None
    wide = figure.get("low") != figure.get("high")
    bounds = [form(figure[key]) for key in ("low", "high") if key in figure and wide]
    return f"{form(figure['value'])}" + (f" [{', '.join(map(str, bounds))}]" if bounds else "")


def share(value: float) -> str:
    """A share as a whole percentage, with one decimal below ten."""
    return f"{value * 100:.{0 if abs(value) >= 0.0995 else 1}f} %"


def form_of(unit: str) -> Callable[[float | None], str | None]:
    """The function that writes numbers of a metric's unit, without the unit; it maps None to None."""
    if unit == "ms":
        return ms
    form = percent if unit == "share" else short
    return lambda value: None if value is None else form(value)


def short(value: float) -> str:
    """Any number to about three digits, with thousands separators and never an exponent."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{Decimal(f'{value:.3g}'):f}"


def fixed(value: float | None) -> str | None:
    return None if value is None else f"{value:,.1f}"


def rate(value: float | None) -> str:
    return "no" if value is None else f"{value:,.1f}"


def percent(value: float | None) -> str | None:
    """A share, as percent to one decimal."""
    return None if value is None else f"{value:.1%}".replace("%", " %")


def number(value: int) -> str:
    return f"{value:,}"


def unit_of(sizes: Iterable[int]) -> Unit:
    """GiB, or MiB if all sizes (bytes) are below 10 GiB, as two decimals of a GiB would then hide too much."""
    return GIB if max(sizes) >= 10 * GIB[1] else MIB


def in_unit(size: int | None, unit: Unit) -> str | None:
    """Bytes as a number in the unit."""
    return None if size is None else f"{size / unit[1]:,.{2 if unit == GIB else 1}f}"


def size_in(size: int, unit: Unit) -> str:
    """Bytes with the unit's name."""
    return f"{in_unit(size, unit)} {unit[0]}"
