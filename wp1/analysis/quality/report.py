"""The report's section on answers: scores by task and length with latencies, examples, perplexity. Pure."""

from collections.abc import Mapping
from typing import Any

import polars as pl

from wp1.analysis.base import metrics
from wp1.analysis.base.markdown import code, form_of, ms, number, table, text
from wp1.quality.scoring import FEW, MIN_EXAMPLES

EXAMPLES = 3  # of the best, and of the worst
PART = ("position in the text", "texts", "tokens")  # first columns of a row of perplexity
HOW_TO_READ = f"""\
- **score**: in percent, with its 95 % interval over examples: Wilson's if answers are either right or wrong or hardly
  vary, else Student's t. **n** counts examples: an example asked in several repeats counts once, with its mean score.
  **few** marks fewer than {FEW} examples, too few to rely on. A failed request scores zero.
- **mean of the tasks**: unweighted; for LongBench, the mean of its categories. Do not compare a built-in task's score
  with scores on the official data set.
- **effective length**: the longest length up to which the RULER score is at least 85.6 %, RULER's own threshold, at
  every length; the relative one asks for at least 85.6 % of the score at the shortest length.
- **perplexity**: exp of the mean negative log-likelihood per token at these positions, in the model's own tokens, with
  its 95 % interval over texts, which takes at least three texts. Perplexity requests count as answered but have no
  latency: no user waits for log-likelihoods."""


def section(found: Mapping[str, Any] | None, rows: pl.DataFrame) -> str:
    """The whole section; "" for a run without scores. rows: from `quality.figures.scored`."""
    if found is None:
        return ""
    parts = ["## Answers", _together(found)]
    several = len(found["arms"]) > 1
    for arm, of in found["arms"].items():
        if several:
            parts.append(f"### {arm}")
        parts += [_words(of), _tasks(of), _lengths(of), _effective(of), _perplexity(of)]
        if several and of["perplexity"]:
            parts.append(_own_texts(found["arms"]))
    if found["differences"]:
        both = list(found["arms"])[:2]
        parts += [difference_table(found["differences"], *both), perplexity_table(found["differences"], *both)]
    parts += [_source(found["dataset"]), _examples(rows, next(iter(found["arms"])))]
    return "\n\n".join(part for part in parts if part)


def _together(found: Mapping[str, Any]) -> str:
    """Scores of several arms side by side by prompt length; "" for one arm or one length."""
    arms = found["arms"]
    by_arm = {arm: {row["bucket"]: row for row in of["by_length"]} for arm, of in arms.items()}
    lengths = sorted({bucket for rows in by_arm.values() for bucket in rows})
    if len(arms) < 2 or len(lengths) < 2:
        return ""
    sentences = [_difference_in_words(found["differences"], *list(arms)[:2])]
    longest = {arm: max(rows) for arm, rows in by_arm.items() if rows}
    for arm, length in longest.items():
        if length > min(longest.values()):
            beyond = [row for bucket, row in by_arm[arm].items() if bucket > min(longest.values())]
            scores = ", ".join(f"{row['mean']:.0f} % up to {number(row['bucket'])}" for row in beyond)
            sentences.append(f"Only {arm} was asked longer prompts: {scores} tokens.")
    effective = [(arm, of["effective_length"]) for arm, of in arms.items()]
    if all(one and len(one["scores"]) > 1 for _, one in effective):
        reach = [f"{arm} {_tokens(one['relative'])}" for arm, one in effective]
        threshold, of = effective[0][1]["threshold"], text(effective[0][1]["of"])
        sentences.append(
            f"Longest length up to which scores stay at or above {threshold:g} % ({of}'s threshold) of the score at "
            f"the shortest length: {', '.join(reach)}."
        )
    rows = []
    for bucket in lengths:
        of = [by_arm[arm].get(bucket) for arm in arms]
        times = [None if row is None else ms(row["ttft_ms"].get("mean")) for row in of]
        rows.append([f"≤ {number(bucket)}", *map(score_cell, of), *times])
    header = ["prompt tokens", *(f"{arm}, score % [95 %]" for arm in arms), *(f"{arm}, TTFT ms" for arm in arms)]
    return " ".join(filter(None, sentences)) + "\n\n" + table(header, rows, "r" * len(header))


def _difference_in_words(found: Mapping[str, Any] | None, a: str, b: str) -> str:
    """How two arms' scores differ over the examples that both were asked."""
    if not found or not found["n"]:
        return ""
    overall = found["overall"]
    both = f"Over the {found['n']} examples that both were asked"
    if _apart(overall) != "yes":
        return f"{both}, no difference between the scores of {a} and {b} could be shown ({_signed(overall)} points)."
    direction = "higher" if overall["delta"] > 0 else "lower"
    ends = sorted([abs(overall["low"]), abs(overall["high"])])
    return f"{both}, {b} scores {abs(overall['delta']):.1f} points [{ends[0]:.1f}, {ends[1]:.1f}] {direction} than {a}."


def score_cell(score: Mapping[str, Any] | None) -> str | None:
    """A score as a cell of a table."""
    if not score or score["mean"] is None:
        return None
    return f"{score['mean']:.1f} [{score['low']:.1f}, {score['high']:.1f}]" + (" few" if score["n"] < FEW else "")


def _source(source: Mapping[str, Any]) -> str:
    kind = {
        "builtin": "made for this run" if source.get("reporting") else "built into wp1",
        "hub": f"the hub, {text(str(source['from']))}"
        + (f" at {text(str(source['revision']))}" if source["revision"] else ""),
        "file": text(str(source["from"])),
    }[source["source"]]
    bad = f" {source['bad_rows']} malformed rows were left out." if source["bad_rows"] else ""
    variant = f" {text(str(source['variant']))}" if source.get("variant") else ""
    count = sum(source["examples"].values())
    return f"Source of the examples: {kind}; {count} examples, digest {code(source['digest'][:12])}.{bad}{variant}"


def _words(of: Mapping[str, Any]) -> str:
    scored = [task for task in of["tasks"] if task["n"]]
    if not scored:
        return ""
    best = max(scored, key=lambda task: task["mean"])
    worst = min(scored, key=lambda task: task["mean"])
    overall = of["overall"]
    extremes = f"; best at {best['task']} ({best['mean']:.0f} %), worst at {worst['task']} ({worst['mean']:.0f} %)"
    sentences = [
        f"Over {overall['n']} example{'s' * (overall['n'] != 1)} of {overall['tasks']} "
        f"task{'s' * (overall['tasks'] > 1)}, the mean score is "
        f"{overall['mean']:.1f} % [{overall['low']:.1f}, {overall['high']:.1f}]{extremes * (len(scored) > 1)}."
    ]
    lengths = of["by_length"]
    if len(lengths) > 1:
        a, b = lengths[0], lengths[-1]
        sentences.append(
            f"The shortest prompts, up to {number(a['bucket'])} tokens, score {a['mean']:.1f} %; the longest, up to "
            f"{number(b['bucket'])} tokens, {b['mean']:.1f} %."
        )
    if of["cut"]:
        sentences.append(f"{of['cut']} prompts were too long for the model and were cut by their task's rule.")
    if of.get("odd"):
        sentences.append(f"The task's scoring rule failed on {of['odd']} answers, which score zero.")
    return " ".join(sentences)


def _tasks(of: Mapping[str, Any]) -> str:
    rows, speed = [], [figure for figure in metrics.shown_in("scores") if figure.statistic == "mean"]
    none = [None] * (1 + len(speed))
    for benchmark, overall in of["benchmarks"].items():
        for task in (task for task in of["tasks"] if task["benchmark"] == benchmark):
            failed = f" ({task['failed']} failed)" if task["failed"] else ""
            rows.append(
                [
                    f"{benchmark}/{task['task']}", text(task["metric"]), f"{task['n']}{failed}", score_cell(task),
                    number(task["prompt_tokens"]), *(form_of(f.metric.unit)(f.value_in(task)) for f in speed),
                ]
            )  # fmt: skip
        if overall["tasks"] > 1:
            rows.append([f"**{benchmark}**", "mean of the tasks", overall["n"], score_cell(overall), *none])
    rows += [
        [text(name), "mean of the tasks", score["n"], score_cell(score), *none] for name, score in of["groups"].items()
    ]
    if not rows:
        return ""
    rows.append(["**all tasks**", "mean of the tasks", of["overall"]["n"], score_cell(of["overall"]), *none])
    header = ["task", "metric", "n", "score % [95 %]", "prompt tokens", *map(_speed_title, speed)]
    return table(header, rows, "ll" + "r" * (3 + len(speed)))


def _speed_title(figure: metrics.Figure) -> str:
    """`TTFT ms` for a mean, `TTFT p95` for a percentile."""
    return f"{figure.metric.title} {figure.metric.unit if figure.statistic == 'mean' else figure.statistic}"


def _lengths(of: Mapping[str, Any]) -> str:
    if len(of["by_length"]) < 2:
        return ""
    speed = list(metrics.shown_in("scores"))
    rows = [
        [
            f"≤ {number(row['bucket'])}", row["n"], row["tasks"], score_cell(row),
            *(form_of(figure.metric.unit)(figure.value_in(row)) for figure in speed),
        ]
        for row in of["by_length"]
    ]  # fmt: skip
    header = ["prompt tokens", "n", "tasks", "score % [95 %]", *map(_speed_title, speed)]
    return table(header, rows, "r" * len(header))


def _effective(of: Mapping[str, Any]) -> str:
    found = of["effective_length"]
    if not found or len(found["scores"]) < 2:
        return ""
    return (
        f"Effective length on {text(found['of'])}'s tasks: **{_tokens(found['absolute'])}** with a score of at least "
        f"{found['threshold']:g} %, {text(found['of'])}'s own threshold; {_tokens(found['relative'])} with at least "
        f"{found['threshold']:g} % of the score at the shortest length."
    )


def _tokens(length: int | None) -> str:
    return "none of the lengths" if length is None else f"{number(length)} tokens"


def _perplexity(of: Mapping[str, Any]) -> str:
    if not of["perplexity"]:
        return ""
    rows = [[*_part(row), _within(row, "mean")] for row in of["perplexity"]]
    return table([*PART, "perplexity [95 %]"], rows, "rrrr")


def _part(row: Mapping[str, Any]) -> list[Any]:
    """The first cells of a row of perplexity, under the headers PART."""
    return [f"{number(row['from'])}–{number(row['to'])}", row["texts"], number(row["n"])]


def _within(figure: Mapping[str, Any], key: str) -> str:
    bounds = "" if figure["low"] is None else f" [{figure['low']:.2f}, {figure['high']:.2f}]"
    return f"{figure[key]:.2f}{bounds}"


def _own_texts(arms: Mapping[str, Any]) -> str:
    """A note beside each arm's rows if arms had different texts; "" if all had the same."""
    reach = {arm: of["perplexity"][-1]["to"] for arm, of in arms.items() if of["perplexity"]}
    texts = {arm: tuple((row["to"], row["texts"], row["n"]) for row in of["perplexity"]) for arm, of in arms.items()}
    if len(set(texts.values())) == 1:
        return ""
    upto = " and ".join(f"those of {arm} reach {number(length)} tokens" for arm, length in reach.items())
    return (
        f"These rows cover the arm's own texts ({upto}): do not compare them with another arm's rows. The comparison "
        "over the same texts is below."
    )


def perplexity_table(found: Mapping[str, Any], a: str, b: str) -> str:
    """Two sides' perplexity over the same texts; "" if they have none in common."""
    if not found["perplexity"]:
        return ""
    rows = [
        [*_part(row), *(_within(row[side], "mean") for side in "ab"), _within(row, "ratio")]
        for row in found["perplexity"]
    ]
    header = [*PART, f"{a}, perplexity", f"{b}, perplexity", f"{b} / {a} [95 %]"]
    most = max(row["texts"] for row in found["perplexity"])
    lead = f"**Perplexity over the same texts** (up to {most} texts, the same tokens of each in both arms):"
    return f"{lead}\n\n" + table(header, rows, "r" * len(header))


def difference_table(found: Mapping[str, Any], a: str, b: str) -> str:
    """Two sides' scores over the same examples."""
    if not found["n"]:
        return ""
    rows = [[f"{row['benchmark']}/{row['task']}", row["n"], _signed(row), _apart(row)] for row in found["tasks"]] + [
        ["**all answers**", found["n"], _signed(found["overall"]), _apart(found["overall"])]
    ]
    lead = (
        f"**{b} − {a}**, over the same {found['n']} examples: {found['overall']['delta']:+.1f} percentage points; "
        f"{100 * found['identical']:.0f} % of the answers are identical."
    )
    note = (
        "**≠ 0**: whether the difference is significant; for single tasks, corrected for their number "
        "(Benjamini-Hochberg). A dash: fewer than six examples, too few to tell."
    )
    return f"{lead}\n\n" + table(["task", "n", "Δ score [95 %]", "≠ 0"], rows, "lrrl") + f"\n\n{note}"


def _signed(row: Mapping[str, Any]) -> str:
    return f"{row['delta']:+.1f} [{row['low']:+.1f}, {row['high']:+.1f}]"


def _apart(row: Mapping[str, Any]) -> str:
    """Whether a difference is significant: a task's among those of all tasks, the overall one by its interval."""
    if row["n"] < MIN_EXAMPLES:
        return "—"
    return "yes" if row.get("shown", row["low"] > 0 or row["high"] < 0) else "no"


def _examples(rows: pl.DataFrame, arm: str) -> str:
    """A few of the best and of the worst answers, each from a different task."""
    first = rows.filter((pl.col("arm") == arm) & (pl.col("repeat") == 0) & pl.col("score").is_not_null())
    if first.is_empty():
        return ""
    ordered = first.sort("score", "example", descending=[True, False])
    best = ordered.unique("task", keep="first", maintain_order=True).head(EXAMPLES)
    worst = ordered.reverse().unique("task", keep="first", maintain_order=True).head(EXAMPLES)
    # With few answers, the best and the worst may overlap: list each once.
    worst = worst.join(best, on=["cell", "example"], how="anti", maintain_order="left")
    lines = [
        [
            text(row["label"], 160), text(row["expected"], 120), text(row["said"], 200) or "*nothing*",
            f"{100 * row['score']:.0f}", number(row["prompt_tokens"] or 0), ms(row["ttft_ms"]),
        ]
        for row in [*best.iter_rows(named=True), *worst.iter_rows(named=True)]
    ]  # fmt: skip
    header = ["asked", "expected", "answered", "score %", "prompt tokens", "TTFT ms"]
    return "### Best and worst answers\n\n" + table(header, lines, "lllrrr")
