"""The report's sections on several arms: narrative, means, tables of every metric, goodput. From `arms.contents`."""

from collections.abc import Mapping, Sequence
from typing import Any

from wp1.analysis.base import aggregates, cells, metrics
from wp1.analysis.base.markdown import form_of, table
from wp1.analysis.comparison import parity
from wp1.analysis.comparison.figures import verdict

Comparison = Mapping[str, Any] | None


def words(found: Comparison, pools: Sequence[Mapping[str, Any]]) -> str:
    """The narrative and the table of all cells' means; "" for a run of one arm, as from all functions here.

    pools: from run_metadata.json.
    """
    if found is None:
        return ""
    more = found["not_compared"]
    note = f" Not compared here: {', '.join(more)}." if more else ""
    title = f"## {found['arms'][1]} against {found['arms'][0]}"
    about = " ".join(filter(None, [sharing(pools, found["arms"]), aggregates.slo_in_words(found["slo"])]))
    return "\n\n".join(part for part in (title, f"{found['words']}{note}", about, _means(found)) if part)


def sharing(pools: Sequence[Mapping[str, Any]], arms: Sequence[str]) -> str:
    """Whether the engines of two arms share GPUs, in a sentence; "" if none do, or if there is no GPU."""
    engines = {
        arm: [tuple(engine["devices"]) for pool in pools if pool.get("arm") == arm for engine in pool["engines"]]
        for arm in arms
    }
    devices = {arm: {device for of in found for device in of} for arm, found in engines.items()}
    if not all(found and all(device.startswith("cuda") for device in found) for found in devices.values()):
        return ""
    a, b = arms
    shared = [len(engines[arm]) > 1 and len(devices[arm]) == 1 for arm in arms]
    if all(shared):
        alone = [
            f"; to give one engine the whole GPU: `arms.{arm}.replicas=1`"
            for arm in arms
            if all({"prefill", "decode"} <= set(pool["phases"]) for pool in pools if pool.get("arm") == arm)
        ]
        counts = [_engines(engines[arm]) for arm in arms]
        if counts[0] == counts[1]:
            return f"Both arms are {counts[0]} on one GPU, which they share{''.join(alone)}."
        return f"{a} is {counts[0]} and {b} is {counts[1]}, which share one GPU{''.join(alone)}."
    if any(shared) and devices[a] == devices[b]:
        one, other = (a, b) if shared[1] else (b, a)
        return (
            f"{one} is one engine with the GPU to itself; {other} is {_engines(engines[other])} on the same GPU, "
            "which share it and its memory."
        )
    return ""


def _engines(found: Sequence[Any]) -> str:
    counts = {1: "one engine", 2: "two engines", 3: "three engines", 4: "four engines"}
    return counts.get(len(found), f"{len(found)} engines")


def _means(found: Mapping[str, Any]) -> str:
    """The table of means, one row per cell; differences that are shown are bold."""
    if len(found["cells"]) < 2:
        return ""
    a, b = found["arms"]
    rows, means = [], metrics.means_in("overview")
    for cell, figures in found["cells"].items():
        row = [cells.parse(cell).words]
        for mean in means:
            figure, form = figures.get(mean.name) or {}, form_of(mean.metric.unit)
            change = None if figure.get("ratio") is None else f"{(figure['ratio'] - 1) * 100:+.1f} %".replace("-", "−")
            row += [form(figure.get(a)), form(figure.get(b)), f"**{change}**" if verdict(figure) else change]
        rows.append(row)
    header = ["means in ms", *(f"{mean.metric.title} {of}" for mean in means for of in (a, b, "Δ"))]
    bold = "Means of every cell; Δ is bold if the difference is shown:"
    note = (
        "\n\nE2E and its Δ are not judged in cells whose answers differ in length." if found["unlike_lengths"] else ""
    )
    return f"{bold}\n\n" + table(header, rows, "l" + "r" * (len(header) - 1)) + note


def side_by_side(found: Comparison) -> str:
    """The section with a table for each cell, then goodput."""
    if found is None:
        return ""
    return "\n\n".join(["## Side by side", _basis(found), tokens(found), tables_of(found)])


def tokens(found: Mapping[str, Any]) -> str:
    """Whether both sides gave the same tokens, in a sentence."""
    if why := found["parity"].get("why_not"):
        return f"Tokens are not compared: {why}."
    return f"Same tokens: {parity.in_words(found['parity'], '**')}."


def tables_of(found: Mapping[str, Any]) -> str:
    """Tables of every metric of every cell, then goodput."""
    a, b = found["arms"]
    parts = []
    titles = {figure.name: (figure.title, figure.metric.unit) for figure in metrics.shown_in("comparison")}
    header = ["", "n", a, b, "Δ", "ratio", "95 % of Δ", "over", "≠ 0"]
    for cell, figures in found["cells"].items():
        rows = []
        for name, row in figures.items():
            title, unit = titles[name]
            rows.append(
                [
                    f"{title}, {unit}" if unit in ("ms", "tokens") else title,
                    _counts(row[f"n_{a}"], row[f"n_{b}"]),
                    form_of(unit)(row[a]),
                    form_of(unit)(row[b]),
                    _change(row["delta"], unit),
                    None if row["ratio"] is None else f"{row['ratio']:.2f}",
                    _interval(row["low"], row["high"], unit),
                    _over(row),
                    _differs(row),
                ]
            )
        parts += [f"**{cell}**: {cells.parse(cell).words}", table(header, rows, "lrrrrrrll")]
        if unlike := found["unlike_lengths"].get(cell):
            parts.append(
                f"Answers to {unlike['unlike']} of {unlike['pairs']} requests differ in length (mean output tokens "
                f"{unlike['a']:g} and {unlike['b']:g}): E2E, decode time, requests/s and output tokens/s would "
                "compare lengths here, so they are not judged."
            )
    parts.append(_goodput(found))
    return "\n\n".join(part for part in parts if part)


def _over(row: Mapping[str, Any]) -> str | None:
    """What the interval is over; None for comparisons written before this was recorded."""
    if row.get("over") is None:
        return None
    return f"{row['units']} repeats" if row["over"] == "repeats" else "requests"


def _differs(row: Mapping[str, Any]) -> str | None:
    """The verdict on a row. With one or two repeats a difference holds for these alone."""
    here = "**here**" if row.get("over") == "requests" else "**yes**"
    return {True: here, False: "no", None: None}[verdict(row)]


def _basis(found: Mapping[str, Any]) -> str:
    silent = [arm for arm in found["arms"] if not found["overall"][arm]["requests"]]
    if silent:
        return f"{' and '.join(silent)} was sent no requests."
    counts = [
        f"{arm} on {n} device{'' if n == 1 else 's'}" for arm, n in found["devices"].items() if arm in found["arms"]
    ]
    same = "Both arms were sent the same prompts, in open loops with the same arrivals"
    basis = f"{same}; {', '.join(counts)} (a host without GPU counts as one)."
    if len({found["devices"][arm] for arm in found["arms"]}) > 1:
        basis += (
            " **Not on equal devices**: rates and latencies are those of each arm's devices; goodput is per device."
        )
    return " ".join(filter(None, [basis, aggregates.slo_in_words(found["slo"])]))


def _goodput(found: Mapping[str, Any]) -> str:
    a, b = found["arms"]
    of_b = {row["prompt"]: row for row in found["goodput"][b]}
    rows = []
    for row in found["goodput"][a]:
        other = of_b.get(row["prompt"])
        if row["rates"]:
            rows.append(
                [
                    f"{int(row['prompt']):,}" if row["prompt"].isdecimal() else row["prompt"],
                    ", ".join(f"{rate:g}" for rate in row["rates"]),
                    _rate(row),
                    None if other is None else _rate(other),
                ]
            )
    if not rows:
        return ""
    header = ["prompt tokens", "rates tested", f"{a}, requests/s per device", f"{b}, requests/s per device"]
    note = (
        "The highest tested rate, per device, up to which every tested rate has an SLO attainment of at least 90 %; "
        f"a dash if there is none. {aggregates.slo_in_words(found['slo'])}"
    )
    return f"### Goodput\n\n{table(header, rows, 'rrrr')}\n\n{note}"


def _rate(row: Mapping[str, Any]) -> str | None:
    return None if row["goodput_per_device"] is None else f"{row['goodput_per_device']:g}"


def _counts(a: int, b: int) -> str:
    return f"{a:,}" if a == b else f"{a:,} / {b:,}"


def _change(value: float | None, unit: str) -> str | None:
    """A difference with its sign; shares in percentage points."""
    if value is None:
        return None
    sign = "−" if value < 0 else "+" if value > 0 else ""
    if unit == "share":
        return f"{sign}{abs(value) * 100:.1f} points"
    return f"{sign}{form_of(unit)(abs(value))}"


def _interval(low: float | None, high: float | None, unit: str) -> str | None:
    if low is None or high is None:
        return None
    return f"[{_change(low, unit)}, {_change(high, unit)}]".replace(" points,", ",")
