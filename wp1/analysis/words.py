"""What a comparison found, in words made from its figures: where most was won and lost, then each metric. Pure."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import polars as pl

from wp1.analysis import cells
from wp1.analysis.markdown import ms

# Metric, what to call it, and whether less of it is better.
HEADLINES = (
    ("ttft_ms/mean", "mean TTFT", True),
    ("tpot_ms/mean", "mean TPOT", True),
    ("itl_ms/p95", "p95 ITL", True),
    ("e2e_ms/mean", "mean E2E", True),
    ("slo_attainment", "SLO attainment", False),
    ("failed_share", "the share of failed requests", True),
)
E2E_PHASES = (
    ("queue_ms/mean", "queue"),
    ("prefill_ms/mean", "prefill"),
    ("handoff_ms/mean", "handoff"),
    ("decode_ms/mean", "decode"),
)
# A phase that moved by less than this share of the whole change is not worth a word.
SLIGHT = 0.1

TOO_FEW = "an interval needs six requests that both arms answered"

Row = dict[str, Any]
Rows = Mapping[tuple[str, str], Row]


def in_words(rows: pl.DataFrame, a: str, b: str) -> str:
    """Markdown: where arm b did better than arm a and where worse, by how much, and which phase moved most.

    rows: of `comparison.compare`. It begins with the cells in which E2E changed most. A difference is called one only
    where its interval excludes zero. Phases are means, so the parts of a change add up to it; that a phase moved most
    is arithmetic, not a cause.
    """
    by = {(row["cell"], row["metric"]): row for row in rows.iter_rows(named=True)}
    names = list(dict.fromkeys(rows["cell"]))
    compared = [cell for cell in names if _known(by, cell)]
    left_out = _left_out(by, [cell for cell in names if cell not in compared], a, b)
    if not compared:
        return " ".join(["No cell could be compared.", *left_out])
    better, worse, shown = [], [], set()
    for metric, title, less_is_better in HEADLINES:
        for sign in (-1, 1):
            moved = [
                by[cell, metric]
                for cell in names
                if (cell, metric) in by and by[cell, metric]["excludes_zero"] and by[cell, metric]["delta"] * sign > 0
            ]
            if moved:
                shown |= {row["cell"] for row in moved}
                tested = sum(by.get((cell, metric), {}).get("delta") is not None for cell in names)
                (better if (sign < 0) == less_is_better else worse).append(_moved(by, moved, tested, metric, title))
    untold = [cell for cell in compared if _too_few(by, cell)]
    over = f"Over {_count(len(compared), 'cell')}"
    if len(untold) == len(compared):
        return " ".join([f"{over}, nothing can be told: {TOO_FEW}.", *left_out])
    blocks = [extremes] if (extremes := _extremes(by, compared, b)) else []
    helped = f"{over}, {b} helped against {a}:" if better else f"{over}, nothing shows that {b} helped against {a}."
    hurt = "It hurt:" if worse else "Nothing shows that it hurt."
    blocks += [helped, _bullets(better), hurt, _bullets(worse)]
    sentences = []
    unclear = [cell for cell in compared if cell not in shown and cell not in untold]
    if untold:
        sentences.append(f"Nothing can be told for {_listed(untold)}: {TOO_FEW}.")
    if unclear:
        where = "any cell" if len(unclear) == len(compared) and len(compared) > 1 else _listed(unclear)
        sentences.append(f"No difference could be shown for {where}.")
    sentences += left_out
    titles = [title for _, title, _ in HEADLINES]
    sentences.append(
        f"Looked at were {', '.join(titles[:-1])} and {titles[-1]}; "
        "a difference counts as shown where its 95 % interval excludes zero."
    )
    return "\n\n".join(block for block in [*blocks, " ".join(sentences)] if block)


def _extremes(by: Rows, names: list[str], b: str) -> str:
    """Where E2E, in which all phases are, fell most and where it rose most; "" where neither could be shown."""
    shown = [row for cell in names if (row := by[cell, "e2e_ms/mean"])["excludes_zero"] and row["ratio"] is not None]
    found = []
    for best, verb in ((min, "won"), (max, "lost")):
        row = best(shown, key=lambda row: row["ratio"], default=None)
        if row is not None and (row["delta"] < 0) == (verb == "won"):
            found.append(
                f"{verb} most for {cells.parse(row['cell']).words}, where mean E2E is {_amount(row)} "
                f"{'lower' if verb == 'won' else 'higher'} ({_value(row, 'b')} instead of {_value(row, 'a')})"
            )
    return f"**End to end {b} {', and '.join(found)}.**" if found else ""


def _bullets(clauses: list[str]) -> str:
    return "\n".join(f"- {clause}." for clause in clauses)


def _too_few(by: Rows, cell: str) -> bool:
    """Whether no interval of the cell can tell anything (`comparison.compare`)."""
    looked_at = [by[cell, metric] for metric, *_ in HEADLINES if (cell, metric) in by]
    return all(row["excludes_zero"] is None for row in looked_at)


def _known(by: Rows, cell: str) -> bool:
    return by.get((cell, "e2e_ms/mean"), {}).get("delta") is not None


def _left_out(by: Rows, names: list[str], a: str, b: str) -> list[str]:
    """A sentence for cells in which an arm answered nothing, or was sent nothing."""
    sentences = []
    for silent, missing in (((a, b), ("a", "b")), ((a,), ("a",)), ((b,), ("b",))):
        of_these = [
            name
            for name in names
            if tuple(s for s in "ab" if by.get((name, "e2e_ms/mean"), {}).get(s) is None) == missing
        ]
        if of_these:
            unasked = [name for name in of_these if len(missing) == 1 and _unasked(by, name, missing[0])]
            for some, how in (
                (unasked, f"{silent[0]} was sent none there, as what was skipped says"),
                (
                    [name for name in of_these if name not in unasked],
                    f"neither {a} nor {b} answered a request" if len(silent) == 2 else
                    f"{silent[0]} did not answer a request",
                ),
            ):  # fmt: skip
                if some:
                    sentences.append(f"For {_listed(some)} there is nothing to compare: {how}.")
    return sentences


def _unasked(by: Rows, cell: str, side: str) -> bool:
    """Whether an arm was sent nothing in a cell; one that failed at everything has a share of failures."""
    row = by.get((cell, "failed_share"))
    return row is not None and row.get(side) is None


def _moved(by: Rows, moved: list[Row], tested: int, metric: str, title: str) -> str:
    """One metric over the cells in which it moved the same way."""
    share = moved[0]["unit"] == "share"
    largest = max(moved, key=lambda row: abs(row["delta"]) if share or row["ratio"] is None else abs(row["ratio"] - 1))
    direction = "lower" if largest["delta"] < 0 else "higher"
    where = cells.parse(largest["cell"]).words
    values = f"{_value(largest, 'b')} instead of {_value(largest, 'a')}"
    phases = {row["cell"]: _phases(by, row, metric) for row in moved}
    of_largest = phases[largest["cell"]]
    main = f", {of_largest[1]}" if of_largest else ""
    if len(moved) == 1:
        of = f"{title} was {direction}" if tested == 1 else f"{title} was {direction} in 1 of {tested} cells"
        return f"{of}, by {_amount(largest)} for {where} ({values}{main})"
    amounts = sorted((_size(row), _amount(row)) for row in moved)
    span = amounts[0][1] if amounts[0][1] == amounts[-1][1] else f"{amounts[0][1]} to {amounts[-1][1]}"
    of = f"all {tested}" if len(moved) == tested else f"{len(moved)} of {tested}"
    text = f"{title} was {direction} in {of} cells, by {span}, most for {where} ({values}{main})"
    named = Counter(found[0] for found in phases.values() if found)
    if len(named) == 1:
        return f"{text}, and in each of them {next(iter(named))} moved most"
    counts = [f"{phase} in {count}" for phase, count in named.most_common()]
    return f"{text}, and the phase that moved most was {' and '.join(counts)} of them" if counts else text


def _phases(by: Rows, row: Row, metric: str) -> tuple[str, str] | None:
    """The phase that explains most of a change, and it in words; None for metrics that have no phases."""
    if metric not in ("ttft_ms/mean", "e2e_ms/mean"):
        return None
    total = row["delta"]
    parts = _parts(by, row["cell"], metric)
    along = [(name, part) for name, part in parts if part * total > 0]
    if not along:
        return None
    name, part = max(along, key=lambda found: abs(found[1]))
    text = f"{'mostly' if abs(part) >= abs(total) / 2 else 'most of it'} {name} {_signed(part)}"
    against = [(n, p) for n, p in parts if p * total < 0 and abs(p) >= SLIGHT * abs(total)]
    if against:
        text += ", against " + " and ".join(f"{n} {_signed(p)}" for n, p in against)
    return name, text


def _parts(by: Rows, cell: str, metric: str) -> list[tuple[str, float]]:
    """The change of each phase in ms. Of TTFT only the phases before the first token, and that depends on the arm."""

    def of(name: str, side: str) -> float:
        # An aggregated arm has no handoff, which adds nothing to its latency.
        return by.get((cell, name), {}).get(side) or 0.0

    phases = [*E2E_PHASES]
    if metric == "ttft_ms/mean":
        last = ("decode_step_ms/mean", "first decode step")
        whole = [*E2E_PHASES[:3], last]
        # Where the decode engine streams the first token, all four add up to TTFT; else the first two do, nearly.
        ttft = of(metric, "b")
        by_decode = abs(ttft - sum(of(n, "b") for n, _ in whole)) < abs(ttft - sum(of(n, "b") for n, _ in whole[:2]))
        phases = whole[:2] if not (by_decode and of("handoff_ms/mean", "b")) else whole
        if len(phases) == len(whole):
            # The aggregated arm's first token comes before any step of decoding.
            return [(title, of(n, "b") - (of(n, "a") if n != last[0] else 0.0)) for n, title in phases]
    return [(title, of(n, "b") - of(n, "a")) for n, title in phases]


def _size(row: Row) -> float:
    return abs(row["delta"]) if row["unit"] == "share" or row["ratio"] is None else abs(row["ratio"] - 1)


def _amount(row: Row) -> str:
    """How much, relative to a; of shares in points."""
    if row["unit"] == "share":
        return f"{abs(row['delta']) * 100:.0f} points"
    if row["ratio"] is None:
        return f"{ms(abs(row['delta']))} ms"
    if row["ratio"] >= 3:
        return f"a factor of {row['ratio']:.1f}"
    return f"{abs(row['ratio'] - 1) * 100:.{0 if abs(row['ratio'] - 1) >= 0.1 else 1}f} %"


def _value(row: Row, side: str) -> str:
    return f"{row[side] * 100:.0f} %" if row["unit"] == "share" else f"{ms(row[side])} ms"


def _signed(value: float) -> str:
    return f"{'−' if value < 0 else '+'}{ms(abs(value))} ms"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _listed(names: list[str]) -> str:
    words = [cells.parse(name).words for name in names]
    return words[0] if len(words) == 1 else f"{'; '.join(words[:-1])} and {words[-1]}"
