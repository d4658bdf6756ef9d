"""A comparison as sentences made from its figures: the largest gain and loss first, then each metric. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from wp1.analysis.base import cells, metrics
from wp1.analysis.base.markdown import share, signed_ms
from wp1.analysis.comparison import amounts, phases
from wp1.analysis.comparison import figures as comparison_figures
from wp1.analysis.comparison.phases import Row, Rows

# An arm with less SLO attainment than this is overloaded. If both arms are, the comparison is between arms that fail.
HARDLY_ANY = 0.2

TOO_FEW = "an interval needs six requests that both arms answered"

Unlike = Mapping[str, Mapping[str, Any]]


def _titles() -> dict[str, str]:
    """The metrics that the sentences cover, by `Figure.name`, with their names in a sentence."""
    return {figure.name: figure.spoken for figure in metrics.shown_in("narrative")}


def in_words(rows: pl.DataFrame, a: str, b: str, unlike: Unlike | None = None) -> str:
    """Markdown: where arm b did better and worse than arm a, by how much, and which phase accounts for most of it.

    rows: from `figures.compare`; unlike: from `figures.unlike_lengths`. It begins with the cells in which E2E changed
    most, or TTFT and TPOT if answers differ in length. Only differences that are shown (`figures.verdict`) are reported
    as differences. Phases are means, so the parts of a change add up to it.
    """
    by = {(row["cell"], row["metric"]): row for row in rows.iter_rows(named=True)}
    names = list(dict.fromkeys(rows["cell"]))
    compared = [cell for cell in names if _known(by, cell)]
    left_out = _left_out(by, [cell for cell in names if cell not in compared], a, b)
    if not compared:
        return " ".join(["No cell could be compared.", *left_out])
    better, worse = (_moved_so(by, names, helped) for helped in (True, False))
    undecided = [cell for cell in compared if _too_few(by, cell)]
    over = f"Over {_count(len(compared), 'cell')}"
    if len(undecided) == len(compared):
        return " ".join([f"{over}, no difference can be judged: {TOO_FEW}.", *left_out])
    different = [cell for cell in compared if cell in (unlike or {})]
    blocks = [
        _few_repeats(by, compared, a, b),
        _extremes(by, compared, b, bool(different)),
        _beyond(by, compared, a, b),
    ]
    blocks.append(_lengths(different, compared, a, b, unlike or {}))
    improved = f"{over}, {b} improved on {a}:" if better else f"{over}, nothing shows that {b} improved on {a}."
    degraded = "It was worse:" if worse else "Nothing shows that it was worse."
    blocks += [improved, _bullets(better), degraded, _bullets(worse)]
    sentences = []
    unclear = [
        cell
        for cell in compared
        if cell not in undecided and not any(_shown(by.get((cell, name))) for name in _titles())
    ]
    if undecided:
        sentences.append(f"No difference can be judged for {_listed(undecided)}: {TOO_FEW}.")
    if unclear:
        where = "any cell" if len(unclear) == len(compared) and len(compared) > 1 else _listed(unclear)
        sentences.append(f"No difference could be shown for {where} in any tested metric.")
    sentences += _power(by, compared)
    sentences += [
        *_parts_alone(by, compared),
        *_rates(by, [cell for cell in compared if cell not in different], b),
        *left_out,
        _tested(by, compared),
    ]
    return "\n\n".join(block for block in [*blocks, " ".join(sentences)] if block)


def _few_repeats(by: Rows, names: list[str], a: str, b: str) -> str:
    """A warning, ahead of all results, that one or two repeats say nothing about another run."""
    few = [cell for cell in names if by.get((cell, "ttft_ms/mean"), {}).get("over") == "requests"]
    if not few:
        return ""
    where = "" if len(few) == len(names) else f" for {_listed(few)}"
    return (
        f"**Fewer than three repeats**{where}: the comparison of {b} with {a} holds only for the requests of these "
        "repeats and says nothing about another run. For that, run three or more (`experiment.repeats`)."
    )


def _power(by: Rows, names: list[str]) -> list[str]:
    """The smallest differences of the means that this many repeats detect, and how many would show those observed."""
    rows = [row for cell in names for metric in ("ttft_ms/mean", "e2e_ms/mean") if (row := by.get((cell, metric)))]
    unsure = [row for row in rows if row.get("detectable") is not None and not _shown(row) and row["a"]]
    if not unsure:
        return []
    repeats = sorted({row["units"] for row in unsure})
    many = f"{repeats[0]} repeats" if len(repeats) == 1 else f"{repeats[0]} to {repeats[-1]} repeats"
    smallest = []
    for metric in ("ttft_ms/mean", "e2e_ms/mean"):
        least = sorted(row["detectable"] / row["a"] for row in unsure if row["metric"] == metric)
        if least:
            ends = [share(least[0])] if len(least) == 1 else [share(least[0]), share(least[-1])]
            smallest.append(f"{' to '.join(ends)} in {_titles()[metric]}")
    needed = [row for row in unsure if (row["repeats_needed"] or 0) > row["units"]]
    sentences = [
        f"For the differences that were not shown: four of five runs with {many} would show one of "
        f"{' and '.join(smallest)}, depending on the cell."
    ]
    if needed:
        row = min(needed, key=lambda row: row["repeats_needed"])
        sentences.append(
            f"Differences as large as those observed take at least {row['repeats_needed']} repeats to show "
            f"(`experiment.repeats`; the fewest are for {_titles()[row['metric']]} at "
            f"{cells.parse(row['cell']).words})."
        )
    return sentences


def _tested(by: Rows, names: list[str]) -> str:
    """Which metrics were tested, and when a difference counts as shown."""
    judged = [by[cell, metric] for cell in names for metric in _titles() if _judged(by, cell, metric)]
    titles = [title for metric, title in _titles().items() if any(row["metric"] == metric for row in judged)]
    return (
        f"Tested metrics: {', '.join(titles[:-1])} and {titles[-1]}. A difference counts as shown if it is significant "
        "after correction for all tests (Benjamini-Hochberg at 5 %)."
    )


def _judged(by: Rows, cell: str, metric: str) -> bool:
    return comparison_figures.verdict(by.get((cell, metric), {})) is not None


def _shown(row: Row | None) -> bool:
    return bool(row and comparison_figures.verdict(row))


def _moved_so(by: Rows, names: list[str], helped: bool) -> list[str]:
    """A clause for each metric that was shown to move for the better (`helped`), or for the worse."""
    found = []
    for metric in metrics.METRICS:
        sign = -1 if helped == metric.less_is_better else 1
        clauses = []
        for figure in metric.at(metric.shown.narrative):
            judged = [by[cell, figure.name] for cell in names if _judged(by, cell, figure.name)]
            moved = [row for row in judged if _shown(row) and row["delta"] * sign > 0]
            if moved:
                clauses.append(_moved(by, moved, len(judged), figure.spoken))
        if clauses:
            found.append("; ".join(clauses))
    return found


def _extremes(by: Rows, names: list[str], b: str, unlike: bool) -> str:
    """Where E2E, which covers all phases, fell and rose most, and the same for SLO attainment; "" if nothing is shown.

    unlike: answers differ in length in some cell. If they do in all, TTFT and TPOT take the place of E2E.
    """
    sentences = [_most(by, names, b, "e2e_ms/mean", "End to end,")]
    if unlike and not any(_judged(by, cell, "e2e_ms/mean") for cell in names):
        sentences = [_most(by, names, b, "ttft_ms/mean", "To the first token,")]
        sentences += [_most(by, names, b, "tpot_ms/mean", "From token to token,")]
    sentences.append(_attained(by, names, b))
    return " ".join(f"**{sentence}**" for sentence in sentences if sentence)


def _attained(by: Rows, names: list[str], b: str) -> str:
    shown = [row for cell in names if _shown(row := by.get((cell, "slo_attainment"))) and row]
    found = []
    for sign, verb in ((1, "won"), (-1, "lost")):
        along = [row for row in shown if row["delta"] * sign > 0]
        if along:
            row = max(along, key=lambda row: row["delta"] * sign)
            found.append(
                f"{verb} most for {cells.parse(row['cell']).words} ({share(row['b'])} instead of {share(row['a'])})"
            )
    return f"In SLO attainment, {b} {', and '.join(found)}." if found else ""


def _most(by: Rows, names: list[str], b: str, metric: str, begin: str) -> str:
    rows = [by[cell, metric] for cell in names if (cell, metric) in by]
    shown = [row for row in rows if _shown(row) and row["ratio"] is not None]
    found = []
    for best, verb in ((min, "won"), (max, "lost")):
        along = [row for row in shown if (row["delta"] < 0) == (verb == "won")]
        if not along:
            continue
        row = best(along, key=lambda row: row["ratio"])
        way = "lower" if verb == "won" else "higher"
        found.append(
            f"{verb} most for {cells.parse(row['cell']).words}{_label(by, row['cell'])}, where {_titles()[metric]} is "
            f"{amounts.amount(row)} {way} ({amounts.value(row, 'b')} instead of {amounts.value(row, 'a')})"
        )
        within = [other for other in along if not _fails(by, other["cell"])]
        if _fails(by, row["cell"]) and within:
            next_best = best(within, key=lambda row: row["ratio"])
            found[-1] += f", otherwise for {cells.parse(next_best['cell']).words} ({amounts.amount(next_best)} {way})"
    return f"{begin} {b} {', and '.join(found)}." if found else ""


def _fails(by: Rows, cell: str) -> bool:
    """Whether hardly any request of either arm met the SLO (`HARDLY_ANY`)."""
    row = by.get((cell, "slo_attainment"), {})
    shares = [row.get(side) for side in "ab"]
    return all(share is not None and share < HARDLY_ANY for share in shares)


def _label(by: Rows, cell: str) -> str:
    if not _fails(by, cell):
        return ""
    return ", beyond capacity" if cells.parse(cell).open_loop else ", beyond the SLO"


def _beyond(by: Rows, names: list[str], a: str, b: str) -> str:
    """A warning for cells in which both arms fail their SLO: a comparison means little there."""
    failing = [cell for cell in names if _fails(by, cell)]
    if not failing:
        return ""
    each = "; ".join(
        f"{cells.parse(cell).words} ({a} {share(row['a'])}, {b} {share(row['b'])})"
        for cell in failing
        if (row := by[cell, "slo_attainment"])
    )
    open_loop = any(cells.parse(cell).open_loop for cell in failing)
    what = "beyond capacity, this compares two arms that both fail" if open_loop else "both arms fail there"
    more = "; how long requests take there depends on how long the load lasts" if open_loop else ""
    return f"**Hardly any request met the SLO** for {each}: {what}{more}."


def _lengths(different: list[str], compared: list[str], a: str, b: str, unlike: Unlike) -> str:
    """What is not judged because answers differ in length; "" if they do not."""
    if not different:
        return ""
    pairs, differ = (sum(unlike[cell][key] for cell in different) for key in ("pairs", "unlike"))
    means = [f"{unlike[cell]['a']:g} and {unlike[cell]['b']:g} for {cells.parse(cell).words}" for cell in different]
    where = "" if len(different) == len(compared) else " there"
    return (
        f"**Answers differ in length** in {differ} of {pairs} pairs of the same request (mean output tokens of {a} and "
        f"{b}: {'; '.join(means)}). A longer answer takes longer, so E2E, decode time, requests/s and output tokens/s "
        f"are not judged{where}; TTFT and TPOT are."
    )


def _parts_alone(by: Rows, names: list[str]) -> list[str]:
    """Phases that are shown to differ in cells whose mean TTFT or E2E, of which they are a part, is not."""
    found = phases.shown(by, names)
    if not found:
        return []
    each = "; ".join(f"{title} {signed_ms(row['delta'])} for {cells.parse(row['cell']).words}" for title, row in found)
    return [f"Phases shown to differ in cells whose mean TTFT or E2E is not: {each}."]


def _rates(by: Rows, names: list[str], b: str) -> list[str]:
    """Output tokens/s whose interval excludes zero but has too few repeats for a verdict."""
    rows = [row for cell in names if (row := by.get((cell, "output_tokens_per_s")))]
    sentences = []
    for sign, way in ((1, "higher"), (-1, "lower")):
        leaning = [
            row
            for row in rows
            if comparison_figures.verdict(row) is None
            and row["low"] is not None
            and min(row["low"] * sign, row["high"] * sign) > 0
        ]
        if leaning:
            each = "; ".join(f"{amounts.amount(row)} for {cells.parse(row['cell']).words}" for row in leaning)
            sentences.append(
                f"Output tokens/s of {b} were {way}, with intervals that exclude zero, but "
                f"{max(row['n_b'] for row in leaning)} repeats are too few for a verdict: {each}."
            )
    return sentences


def _bullets(clauses: list[str]) -> str:
    return "\n".join(f"- {clause}." for clause in clauses)


def _too_few(by: Rows, cell: str) -> bool:
    """Whether no metric of the cell has a verdict (`figures.compare`)."""
    return not any(_judged(by, cell, metric) for metric in _titles())


def _known(by: Rows, cell: str) -> bool:
    return by.get((cell, "e2e_ms/mean"), {}).get("delta") is not None


def _left_out(by: Rows, names: list[str], a: str, b: str) -> list[str]:
    """Sentences for cells that cannot be compared, as an arm answered nothing or was sent nothing."""
    sentences = []
    for silent, missing in (((a, b), ("a", "b")), ((a,), ("a",)), ((b,), ("b",))):
        silent_cells = [
            name
            for name in names
            if tuple(s for s in "ab" if by.get((name, "e2e_ms/mean"), {}).get(s) is None) == missing
        ]
        if silent_cells:
            unasked = [name for name in silent_cells if len(missing) == 1 and _unasked(by, name, missing[0])]
            for some, how in (
                (unasked, f"{silent[0]} was sent no request there (see what was skipped)"),
                (
                    [name for name in silent_cells if name not in unasked],
                    f"neither {a} nor {b} answered a request" if len(silent) == 2 else
                    f"{silent[0]} did not answer a request",
                ),
            ):  # fmt: skip
                if some:
                    sentences.append(f"Cannot compare {_listed(some)}: {how}.")
    return sentences


def _unasked(by: Rows, cell: str, side: str) -> bool:
    """Whether an arm was sent nothing in a cell. One whose requests all failed has a share of failures."""
    row = by.get((cell, "failed_share"))
    return row is not None and row.get(side) is None


def _moved(by: Rows, moved: Sequence[Row], tested: int, title: str) -> str:
    """A clause on one metric, for the cells in which it moved one way; tested: in how many cells it was tested."""
    largest = max(moved, key=amounts.size)
    direction = "lower" if largest["delta"] < 0 else "higher"
    where = cells.parse(largest["cell"]).words
    values = f"{amounts.value(largest, 'b')} instead of {amounts.value(largest, 'a')}"
    parts = {row["cell"]: phases.largest(by, row) for row in moved}
    of_largest = parts[largest["cell"]]
    main = f", {of_largest[1]}" if of_largest else ""
    if len(moved) == 1:
        of = f"{title} was {direction}" if tested == 1 else f"{title} was {direction} in 1 of {tested} cells"
        return f"{of}, by {amounts.amount(largest)} for {where} ({values}{main})"
    sizes = sorted((amounts.size(row), amounts.amount(row)) for row in moved)
    span = sizes[0][1] if sizes[0][1] == sizes[-1][1] else f"{sizes[0][1]} to {sizes[-1][1]}"
    of = f"all {tested}" if len(moved) == tested else f"{len(moved)} of {tested}"
    text = f"{title} was {direction} in {of} cells, by {span}, most for {where} ({values}{main})"
    counts = phases.of_many([found[0] for found in parts.values() if found])
    return f"{text}, {counts}" if counts else text


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _listed(names: list[str]) -> str:
    words = [cells.parse(name).words for name in names]
    return words[0] if len(words) == 1 else f"{'; '.join(words[:-1])} and {words[-1]}"
