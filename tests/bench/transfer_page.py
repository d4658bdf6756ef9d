"""The results of `make bench-transfer`: rows in a folder that several calls add to, and their page and plot.

facts.json     machine, versions and settings, which are the same for all calls
rows.jsonl     one handoff a line
plain.jsonl    one plain copy a line
missing.json   by variant, the reason why it could not be measured completely
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

# Distance between the connectors' bars in the plot, in points.
BESIDE_PT = 3
# A disturbance can only make a plain copy slower. Copies below this fraction of the fastest of the same size are left
# out.
OUTLIER = 0.5


@dataclass(frozen=True)
class Measured:
    """One handoff; times in ms."""

    variant: str
    tokens: int
    bytes: int
    gb_per_s: float
    whole: float  # client's TTFT minus queue and prefill
    there: float  # KV there - prefill done
    scheduled: float  # scheduled - KV there
    token: float  # first token - scheduled


class DiffersError(Exception):
    """The folder has rows from another machine, or with other settings."""


@dataclass
class Results:
    """The contents of the folder. Additions are written at once."""

    folder: Path
    facts: dict[str, Any] = field(default_factory=dict)
    rows: list[Measured] = field(default_factory=list)
    plain: list[tuple[int, float]] = field(default_factory=list)  # tokens, GB/s
    missing: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> "Results":
        """Reads a folder. Raises FileNotFoundError if it is not a results folder."""
        results = cls(folder, json.loads((folder / "facts.json").read_text(encoding="utf-8")))
        results.rows = [Measured(**row) for row in _lines(folder / "rows.jsonl")]
        results.plain = [(row["tokens"], row["gb_per_s"]) for row in _lines(folder / "plain.jsonl")]
        if (folder / "missing.json").exists():
            results.missing = json.loads((folder / "missing.json").read_text(encoding="utf-8"))
        return results

    @classmethod
    def begin(cls, folder: Path, facts: dict[str, Any]) -> "Results":
        """The results in the folder, to be continued. Raises DiffersError if their facts differ from `facts`."""
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "facts.json").exists():
            (folder / "facts.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
            return cls(folder, facts)
        results = cls.read(folder)
        for key in sorted(facts.keys() | results.facts.keys()):
            if results.facts.get(key) != facts.get(key):
                raise DiffersError(
                    f"{folder} was measured with {key} {results.facts.get(key)}, but this is {facts.get(key)}"
                )
        return results

    def has(self, variant: str, tokens: int) -> bool:
        return any((row.variant, row.tokens) == (variant, tokens) for row in self.rows)

    def rates(self) -> list[Measured]:
        """The rows with bytes and a rate. The others come from a connector that could not count bytes."""
        return [row for row in self.rows if row.bytes > 0 and 0 < row.gb_per_s < math.inf]

    def plain_rates(self, tokens: int) -> tuple[list[float], list[float]]:
        """GB/s of plain copies of a prompt of `tokens` tokens: those to use, and the outliers."""
        rates = sorted(rate for n, rate in self.plain if n == tokens)
        good = [rate for rate in rates if rate >= OUTLIER * rates[-1] > 0]
        return good, rates[: len(rates) - len(good)]

    def add(self, rows: list[Measured]) -> None:
        self.rows += rows
        _append(self.folder / "rows.jsonl", map(vars, rows))

    def add_plain(self, rates: dict[int, float]) -> None:
        self.plain += rates.items()
        _append(self.folder / "plain.jsonl", ({"tokens": n, "gb_per_s": rate} for n, rate in rates.items()))

    def miss(self, variant: str, reason: str | None) -> None:
        """Records why a variant could not be measured completely; None removes an earlier reason."""
        if reason is None:
            self.missing.pop(variant, None)
        else:
            self.missing[variant] = reason
        (self.folder / "missing.json").write_text(json.dumps(self.missing, indent=2) + "\n", encoding="utf-8")

    def write_page(self) -> str:
        """Writes the page and its plot. Returns the page."""
        page = page_of(self)
        (self.folder / "transfer.md").write_text(page, encoding="utf-8")
        if self.rates():
            plot(self, self.folder / "transfer.png")
        return page


def _lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a file, without a partial last line, which a killed writer may leave."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def _append(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    content = path.read_bytes() if path.exists() else b""
    with path.open("r+b" if content else "wb") as file:
        file.truncate(content.rfind(b"\n") + 1)
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
        fastest = {(v, n): max(all_) for v in variants for n in lengths if (all_ := _rates(rows, v, n))}
        by_variant.append(["the same ratio, fastest handoffs", *(_ratio(fastest, n) for n in lengths)])
    waits = [
        [
            v,
            f"{n:,}",
            str(len(handoffs)),
            *(f"{_median(getattr(row, part) for row in handoffs):.1f}" for part in PARTS),
            " to ".join(short(end(_rates(rows, v, n))) for end in (min, max)),
        ]
        for v in variants
        for n in lengths
        if (handoffs := _of(rows, v, n))
    ]
    lines = [
        f"Random weights; {facts['machine']}, engines on {facts['engines']}; "
        + ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
        + (f"; {' '.join(facts['overrides'])}" if facts["overrides"] else "")
        + ".",
        "Medians over handoffs, one at a time. The second table has their number.",
        "",
        f"GB/s by tokens in the prompt, and in brackets the ratio to a {copy} of as many bytes:",
        "",
        table(["connector", *(f"{n:,}" for n in lengths)], by_variant, "l" + "r" * len(lengths)),
        "",
        *_spread(results, lengths),
        "Time in ms from the end of prefill to the decode engine's first token at the client, and its parts: until the"
        " KV had arrived, then until the request was scheduled, then until its first token in the engine. The last"
        " column has the slowest and the fastest handoff in GB/s:",
        "",
        table(["connector", "tokens", "handoffs", *PARTS.values(), "GB/s"], waits, "lrrrrrrr"),
        "",
    ]
    for variant, n in dict.fromkeys((row.variant, row.tokens) for row in results.rows if row not in rows):
        lines += [f"{variant}, {n:,} tokens: the connector reported no bytes, so there is no rate.", ""]
    for variant, reason in results.missing.items():
        lines += [f"{variant} was not measured completely: {' '.join(reason.split())}", ""]
    return "\n".join(lines)


# Fields of `Measured`, and their columns in the second table.
PARTS = {"whole": "whole", "there": "KV arrived", "scheduled": "scheduled", "token": "token"}


def _copy(facts: Mapping[str, Any]) -> str:
    """The kind of the plain copy, as text."""
    return "copy from GPU to GPU" if facts["apart"] else "plain gather"


def _spread(results: Results, lengths: list[int]) -> list[str]:
    """The range of the plain copies of each length, and the outliers that were left out."""
    lines = []
    for n in lengths:
        good, outliers = results.plain_rates(n)
        if len(good) + len(outliers) < 2:
            continue
        ends = " to ".join(dict.fromkeys((short(good[0]), short(good[-1])))) + " GB/s" if good else "none"
        apart = f", without outliers {', '.join(map(short, outliers))}" if outliers else ""
        lines.append(f"{n:,} tokens: {ends}{apart}")
    if not lines:
        return []
    return [f"The {_copy(results.facts)} is the median of repeated measurements: " + "; ".join(lines) + ".", ""]


def _of(rows: list[Measured], variant: str, tokens: int) -> list[Measured]:
    return [row for row in rows if (row.variant, row.tokens) == (variant, tokens)]


def _rates(rows: list[Measured], variant: str, tokens: int) -> list[float]:
    return [row.gb_per_s for row in _of(rows, variant, tokens)]


def _median(values: Iterable[float]) -> float | None:
    rates = list(values)
    return statistics.median(rates) if rates else None


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
    """Plots GB/s by prompt length: lines for medians, bars from the slowest to the fastest handoff.

    Lines are at their true positions. Bars are shifted by some points, because those of several connectors would
    hide one another.
    """
    style.use()
    import matplotlib.pyplot as plt
    import seaborn as sns
    from matplotlib.transforms import ScaledTranslation

    figure, axes = plt.subplots(figsize=(style.WIDTH, 4.4))
    series = [(row.variant, row.tokens, row.gb_per_s) for row in results.rates()]
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
    for number, (name, colour) in enumerate(zip(names, sns.color_palette(style.PALETTE, len(names)), strict=True)):
        aside = ScaledTranslation(BESIDE_PT * (number - (len(names) - 1) / 2) / 72, 0, figure.dpi_scale_trans)
        for tokens in {tokens for variant, tokens, _ in series if variant == name}:
            rates = [rate for variant, n, rate in series if (variant, n) == (name, tokens)]
            ends = (min(rates), max(rates))
            axes.plot([tokens] * 2, ends, color=colour, linewidth=1.2, transform=axes.transData + aside)
    counts = sorted({len(_of(results.rates(), name, n)) for name, n, _ in series if name != plain})
    n = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    title = style.title("KV between engines", f" · median and range of {n} handoffs")
    axes.set(xscale="log", xlabel="tokens in the prompt", ylabel="GB/s", title=title)
    rates = [rate for *_, rate in series]
    style.logarithmic(axes, min(rates), max(rates), "{x:,g}")
    # Set the limits explicitly: matplotlib ignores shifted bars when it computes them.
    axes.set_ylim(min(rates) / 1.25, max(rates) * 1.25)
    lengths = sorted({tokens for _, tokens, _ in series})
    axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
    axes.minorticks_off()
    axes.legend(title=None, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    style.save(figure, path)
