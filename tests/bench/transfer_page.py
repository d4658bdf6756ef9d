"""What `make bench-transfer` found, as rows in a folder that several calls add to, and the page and plot of them.

facts.json     the machine, versions and settings, which are the same for all calls
rows.jsonl     a handoff each
plain.jsonl    a plain copy each
missing.json   why a variant could not be measured to its end, by its name
transfer.md, transfer.png
"""

import json
import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wp1.analysis.base import style
from wp1.analysis.base.markdown import short, table

# In the plot from one connector's bar to the next: points.
BESIDE_PT = 3
# A plain copy may be disturbed, which makes it slower, and by nothing faster: below this part of the fastest of as many
# tokens, one is left out.
OUTLIER = 0.5


@dataclass(frozen=True)
class Measured:
    """One handoff; times in ms."""

    variant: str
    tokens: int
    bytes: int
    gb_per_s: float
    whole: float  # client's first token less queue and prefill
    there: float  # KV there - prefill done
    scheduled: float  # scheduled - KV there
    token: float  # first token - scheduled


class DiffersError(Exception):
    """The folder has rows of another machine, or of other settings."""


@dataclass
class Results:
    """All that is in the folder; what is added is on disk at once."""

    folder: Path
    facts: dict[str, Any] = field(default_factory=dict)
    rows: list[Measured] = field(default_factory=list)
    plain: list[tuple[int, float]] = field(default_factory=list)  # tokens, GB/s
    missing: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> "Results":
        """Raises FileNotFoundError where the folder is none of these."""
        found = cls(folder, json.loads((folder / "facts.json").read_text(encoding="utf-8")))
        found.rows = [Measured(**row) for row in _lines(folder / "rows.jsonl")]
        found.plain = [(row["tokens"], row["gb_per_s"]) for row in _lines(folder / "plain.jsonl")]
        if (folder / "missing.json").exists():
            found.missing = json.loads((folder / "missing.json").read_text(encoding="utf-8"))
        return found

    @classmethod
    def begin(cls, folder: Path, facts: dict[str, Any]) -> "Results":
        """Those that are there, to go on with. Raises DiffersError where they are of something else."""
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "facts.json").exists():
            (folder / "facts.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
            return cls(folder, facts)
        found = cls.read(folder)
        for key in sorted(facts.keys() | found.facts.keys()):
            if found.facts.get(key) != facts.get(key):
                raise DiffersError(f"{folder} is of {key} {found.facts.get(key)}, and this is {facts.get(key)}")
        return found

    def has(self, variant: str, tokens: int) -> bool:
        return any((row.variant, row.tokens) == (variant, tokens) for row in self.rows)

    def rates(self) -> list[Measured]:
        """The rows that are a measurement: with bytes, and a rate. Others are of a connector that could not count."""
        return [row for row in self.rows if row.bytes > 0 and 0 < row.gb_per_s < math.inf]

    def plain_rates(self, tokens: int) -> tuple[list[float], list[float]]:
        """GB/s of plain copies of as many bytes: those to go by, and the outliers."""
        found = sorted(rate for n, rate in self.plain if n == tokens)
        good = [rate for rate in found if rate >= OUTLIER * found[-1] > 0]
        return good, found[: len(found) - len(good)]

    def add(self, rows: list[Measured]) -> None:
        self.rows += rows
        _append(self.folder / "rows.jsonl", map(vars, rows))

    def add_plain(self, rates: dict[int, float]) -> None:
        self.plain += rates.items()
        _append(self.folder / "plain.jsonl", ({"tokens": n, "gb_per_s": rate} for n, rate in rates.items()))

    def miss(self, variant: str, reason: str | None) -> None:
        """Why a variant could not be measured to its end, or, with None, that it was."""
        if reason is None:
            self.missing.pop(variant, None)
        else:
            self.missing[variant] = reason
        (self.folder / "missing.json").write_text(json.dumps(self.missing, indent=2) + "\n", encoding="utf-8")

    def write_page(self) -> str:
        """The page, also as a file, with its plot beside it."""
        page = page_of(self)
        (self.folder / "transfer.md").write_text(page, encoding="utf-8")
        if self.rates():
            plot(self, self.folder / "transfer.png")
        return page


def _lines(path: Path) -> list[dict[str, Any]]:
    """Of a file that may end in half a line, where its writer was killed."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def _append(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    whole = path.read_bytes() if path.exists() else b""
    with path.open("r+b" if whole else "wb") as file:
        file.truncate(whole.rfind(b"\n") + 1)
        file.seek(0, 2)
        file.write("".join(json.dumps(row) + "\n" for row in rows).encode())


def page_of(results: Results) -> str:
    rows, facts = results.rates(), results.facts
    variants = list(dict.fromkeys(row.variant for row in rows))
    lengths = sorted({row.tokens for row in rows})
    copy = _copy(facts)
    plain = {n: _median(results.plain_rates(n)[0]) for n in lengths}
    rates = {(v, n): _median(_rates(rows, v, n)) for v in variants for n in lengths}
    by_variant = [[v, *(_rate(rates[v, n], plain[n]) for n in lengths)] for v in variants]
    by_variant.append([copy, *(_rate(plain[n], plain[n]) for n in lengths)])
    if any(ratios := [_ratio(rates, n) for n in lengths]):
        by_variant.append(["best ipc / best NIXL", *ratios])
        fastest = {(v, n): max(found) for v in variants for n in lengths if (found := _rates(rows, v, n))}
        by_variant.append(["the same of the fastest handoffs", *(_ratio(fastest, n) for n in lengths)])
    waits = [
        [
            v,
            f"{n:,}",
            str(len(found)),
            *(f"{_median(getattr(row, part) for row in found):.1f}" for part in PARTS),
            " to ".join(short(end(_rates(rows, v, n))) for end in (min, max)),
        ]
        for v in variants
        for n in lengths
        if (found := _of(rows, v, n))
    ]
    lines = [
        f"Random weights; {facts['machine']}, engines on {facts['engines']}; "
        + ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
        + (f"; {' '.join(facts['overrides'])}" if facts["overrides"] else "")
        + ".",
        "Medians of handoffs one at a time, as many as the second table says.",
        "",
        f"GB/s by tokens in the prompt, and beside it the part of a {copy} of as many bytes:",
        "",
        table(["connector", *(f"{n:,}" for n in lengths)], by_variant, "l" + "r" * len(lengths)),
        "",
        *_spread(results, lengths),
        "From the end of prefill to the decode engine's first token at the client, in ms, and of that: until the KV"
        " was there, from there until it was scheduled, and from there to its first token in the engine; at the end the"
        " slowest and the fastest handoff in GB/s:",
        "",
        table(["connector", "tokens", "handoffs", *PARTS.values(), "GB/s"], waits, "lrrrrrrr"),
        "",
    ]
    for variant, n in dict.fromkeys((row.variant, row.tokens) for row in results.rows if row not in rows):
        lines += [f"{variant}, {n:,} tokens: the connector reported no bytes, so there is no rate.", ""]
    for variant, reason in results.missing.items():
        lines += [f"{variant} was not measured to its end: {' '.join(reason.split())}", ""]
    return "\n".join(lines)


# Of the second table: fields of `Measured`, and their columns.
PARTS = {"whole": "whole", "there": "KV there", "scheduled": "scheduled", "token": "token"}


def _copy(facts: Mapping[str, Any]) -> str:
    """What the plain copy beside the connectors is."""
    return "copy from GPU to GPU" if facts["apart"] else "plain gather"


def _spread(results: Results, lengths: list[int]) -> list[str]:
    """How far the plain copies of a length lie apart, and which were left out."""
    lines = []
    for n in lengths:
        good, outliers = results.plain_rates(n)
        if len(good) + len(outliers) < 2:
            continue
        ends = " to ".join(dict.fromkeys((short(good[0]), short(good[-1])))) + " GB/s" if good else "none"
        apart = f", left out as disturbed: {', '.join(map(short, outliers))}" if outliers else ""
        lines.append(f"{n:,} tokens: {ends}{apart}")
    if not lines:
        return []
    return [f"Of the {_copy(results.facts)} the median, of measurements at " + "; at ".join(lines) + ".", ""]


def _of(rows: list[Measured], variant: str, tokens: int) -> list[Measured]:
    return [row for row in rows if (row.variant, row.tokens) == (variant, tokens)]


def _rates(rows: list[Measured], variant: str, tokens: int) -> list[float]:
    return [row.gb_per_s for row in _of(rows, variant, tokens)]


def _median(values: Iterable[float]) -> float | None:
    found = list(values)
    return statistics.median(found) if found else None


def _rate(rate: float | None, plain: float | None) -> str:
    if rate is None:
        return ""
    return short(rate) if plain is None else f"{short(rate)} ({short(rate / plain)})"


def _ratio(rates: Mapping[tuple[str, int], float | None], tokens: int) -> str:
    best = {
        kind: max((rate for (v, n), rate in rates.items() if n == tokens and rate and v.startswith(kind)), default=None)
        for kind in ("ipc", "NIXL")
    }
    ours, theirs = best["ipc"], best["NIXL"]
    return "" if ours is None or theirs is None else short(ours / theirs)


def plot(results: Results, path: Path) -> None:
    """GB/s by tokens: the medians as lines, from the lowest to the highest as bars.

    Lines stand at their true places. Bars stand some points beside them, as those of seven connectors that all reach
    from 5 to 1,000 would hide one another.
    """
    style.use()
    import matplotlib.pyplot as plt
    import seaborn as sns
    from matplotlib.transforms import ScaledTranslation

    figure, axes = plt.subplots(figsize=(style.WIDTH, 4.4))
    found = results.rates()
    series = [(row.variant, row.tokens, row.gb_per_s) for row in found]
    plain = _copy(results.facts)
    for tokens in dict.fromkeys(tokens for tokens, _ in results.plain):
        series += [(plain, tokens, rate) for rate in results.plain_rates(tokens)[0]]
    names = list(dict.fromkeys(name for name, *_ in series))
    sns.lineplot(
        x=[tokens for _, tokens, _ in series],
        y=[rate for *_, rate in series],
        hue=[name for name, *_ in series],
        style=[name for name, *_ in series],
        hue_order=names,
        style_order=names,
        markers=True,
        dashes=False,
        estimator="median",
        errorbar=None,
        ax=axes,
    )
    for place, (name, colour) in enumerate(zip(names, sns.color_palette(style.PALETTE, len(names)), strict=True)):
        aside = ScaledTranslation(BESIDE_PT * (place - (len(names) - 1) / 2) / 72, 0, figure.dpi_scale_trans)
        for tokens in {tokens for of, tokens, _ in series if of == name}:
            rates = [rate for of, n, rate in series if (of, n) == (name, tokens)]
            ends = (min(rates), max(rates))
            axes.plot([tokens] * 2, ends, color=colour, linewidth=1.2, transform=axes.transData + aside)
    counts = sorted({len(_of(found, name, n)) for name, n, _ in series if name != plain})
    n = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    title = style.title("KV between engines", f" · median and range of {n} handoffs")
    axes.set(xscale="log", xlabel="tokens in the prompt", ylabel="GB/s", title=title)
    rates = [rate for *_, rate in series]
    style.logarithmic(axes, min(rates), max(rates), "{x:,g}")
    # What stands beside its place counts in no limits of its own.
    axes.set_ylim(min(rates) / 1.25, max(rates) * 1.25)
    lengths = sorted({tokens for _, tokens, _ in series})
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.minorticks_off()
    axes.legend(title=None, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    style.save(figure, path)
