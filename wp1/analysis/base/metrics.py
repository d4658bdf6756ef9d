"""METRICS: every metric of a run, one row each: how it is derived, its unit and title, and where it is shown.

Reports, comparisons, plots, the console, MLflow, sweeps and CSV files read this table. To add a metric, add a row: all
of these show it. Off by default are only these fields of `Shown`: `answers`, `overview`, `scores` and `mlflow_first`.
docs/metrics.md lists the formulas, and a test compares it with this table.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

import polars as pl

# request: one value per answered request. gaps: a list of values per answered request, pooled.
# rate: a sum over what was delivered, divided by the seconds it took. share: a share of all requests sent.
Kind = Literal["request", "gaps", "rate", "share"]
Unit = Literal["ms", "tokens", "tokens/s", "requests/s", "share"]
# "mean", a percentile such as "p95", or a bound of the mean's interval ("mean_low"). A rate or share has only its mean.
Statistics = tuple[str, ...]
ALL_OF_A_DISTRIBUTION: Statistics = ("mean", "p50", "p90", "p95", "p99")


@dataclass(frozen=True)
class Shown:
    """Where a metric is shown, and with which statistics; () and False mean that it is not shown there."""

    summary: bool = True  # summary.json, from which report, MLflow and sweeps read
    report: bool = True  # the report's figures of each cell
    answers: bool = False  # next to each answer, in the report and on the console
    console: Statistics = ("p50",)
    comparison: Statistics = ("mean", "p95")  # the tables of a comparison
    narrative: Statistics = ("mean",)  # the sentences of a comparison
    overview: bool = False  # the table of means of all cells, and the ratios in MLflow
    load: Statistics = ("mean",)  # artifacts/*_by_load.csv and its table
    load_table: bool = True  # False: only in the CSV file
    load_panel: str = "mean"  # the statistic in the plot over load; "" for none
    length: Statistics = ("mean",)  # artifacts/*_by_length.csv and its table
    scores: Statistics = ()  # next to the scores of a scored run
    sweep: Statistics = ("p50",)  # comparison.csv and comparison.md
    plots: bool = True  # the plots of several arms and of sweeps
    mlflow: Statistics = ALL_OF_A_DISTRIBUTION
    mlflow_first: Statistics = ()  # at the top of MLflow's pages
    mlflow_curves: Statistics = ("mean",)  # over prompt length


@dataclass(frozen=True)
class Metric:
    """One metric. `key` is its column in `tables.requests` and its key in every file."""

    key: str
    title: str
    unit: Unit
    kind: Kind
    # Uses the columns of a record (`tables.RECORD_SCHEMA`) and metrics derived from those alone. A rate may also use
    # the columns of `aggregates.delivered`, and a share `met_slo`, which is null without limits.
    derive: pl.Expr
    formula: str  # in words
    less_is_better: bool = True
    digits: int = 4  # decimals kept in summary.json and CSV files
    brief: str = ""  # a title for narrow columns
    spoken: str = ""  # its name in a sentence, if not the title
    for_users: bool = True  # False: also for requests that only ask for their prompt's perplexity
    grows_with_output: bool = False  # not compared if two arms' answers differ in length
    needs_slo: bool = False
    shown: Shown = field(default_factory=Shown)

    @property
    def of_one_request(self) -> bool:
        """Whether a single request has it, as one value or as a list of gaps."""
        return self.kind in ("request", "gaps")

    def at(self, statistics: Statistics) -> list["Figure"]:
        """Its figures with these statistics; a rate or share has only one."""
        if statistics and not self.of_one_request:
            statistics = ("mean",)
        return [Figure(self, statistic) for statistic in statistics]


class Figure(NamedTuple):
    """A metric with one of its statistics."""

    metric: Metric
    statistic: str

    @property
    def name(self) -> str:
        """Its name in a comparison: `ttft_ms/p95`; for a rate or share its key."""
        return f"{self.metric.key}/{self.statistic}" if self.metric.of_one_request else self.metric.key

    @property
    def column(self) -> str:
        """Its column in a sweep's table: `ttft_ms_p95`; for a rate or share its key."""
        return self.name.replace("/", "_")

    @property
    def short_column(self) -> str:
        """Its column in tables of cells, where the mean has no suffix (`ttft_ms`) and rates are per device."""
        if self.metric.kind == "rate":
            return f"{self.metric.key}_per_device"
        return self.metric.key if self.statistic == "mean" else self.column

    @property
    def title(self) -> str:
        """`TTFT mean`, `TTFT p95`, `output tokens/s`."""
        return f"{self.metric.title} {self.statistic}" if self.metric.of_one_request else self.metric.title

    @property
    def short_title(self) -> str:
        """The title that goes with `short_column`: `TTFT`, `TTFT p95`, `tokens/s per device`."""
        if self.metric.kind == "rate":
            return f"{self.metric.brief or self.metric.title} per device"
        return self.metric.title if self.statistic == "mean" else self.title

    @property
    def scale(self) -> float:
        """Factor for its values in a plot: shares are drawn in percent."""
        return 100.0 if self.metric.unit == "share" else 1.0

    def value_in(self, figures: Mapping[str, Any]) -> float | None:
        """Its value in a cell's figures (`aggregates.latency`); None if they lack it."""
        found = figures.get(self.metric.key)
        return found.get(self.statistic) if isinstance(found, Mapping) else found

    @property
    def spoken(self) -> str:
        """Its name in a sentence: `mean TTFT`, `output tokens/s`."""
        name = self.metric.spoken or self.metric.title
        return f"{self.statistic} {name}" if self.metric.of_one_request else name


_OK = pl.col("status") == "ok"
_FIRST, _LAST = pl.col("t_tokens").list.first(), pl.col("t_tokens").list.last()
_GAPS = pl.col("output_tokens") - 1
# Whether the client got its first token from the decode engine. The times decide, not a setting: if the decode engine's
# first token came later than the client's, it cannot be the same token.
FIRST_BY_DECODE = (pl.col("t_decode_first_token") <= _FIRST).fill_null(False)
# A handoff whose end is unknown must not count as a decode step.
_HANDED_OVER = pl.any_horizontal(pl.col("handoff_id", "t_decode_sent", "t_decode_scheduled").is_not_null())
_COMPUTED, _THERE = pl.col("t_engine_first_token"), pl.col("t_decode_scheduled")
_DECODABLE = (
    pl.when(_HANDED_OVER).then(pl.when(_THERE < _COMPUTED).then(_COMPUTED).otherwise(_THERE)).otherwise(_COMPUTED)
)
_DECODED = pl.when(FIRST_BY_DECODE).then(_FIRST).otherwise(pl.col("t_tokens").list.get(1, null_on_oob=True))
_DELIVERED = pl.when(FIRST_BY_DECODE).then("t_decode_first_token").otherwise("t_engine_first_token")

_INTERVAL_AND_TAIL: Statistics = ("mean", "mean_low", "mean_high", "p95")
_FOR_A_USER = Shown(
    answers=True, comparison=("mean", "p95"), narrative=("mean", "p95"), overview=True, scores=("mean",),
    sweep=("p50", "p95"), mlflow_first=("mean", "p99"), mlflow_curves=_INTERVAL_AND_TAIL,
)  # fmt: skip
_PHASE = Shown(
    console=(), comparison=("mean",), narrative=(), load=(), load_panel="", length=(), sweep=(), plots=False,
    mlflow=("mean", "p99"), mlflow_curves=(),
)  # fmt: skip
_NOT_COMPARED = Shown(
    console=(), comparison=(), narrative=(), load=(), load_panel="", length=(), sweep=(), plots=False,
    mlflow=("mean", "p99"), mlflow_curves=(),
)  # fmt: skip

METRICS: tuple[Metric, ...] = (
    Metric(
        "ttft_ms", "TTFT", "ms", "request", (_FIRST - pl.col("t_intended")) * 1e3,
        "first output token − intended arrival",
        shown=Shown(
            answers=True, comparison=("mean", "p50", "p95"), narrative=("mean", "p95"), overview=True,
            load=("mean", "p95"), length=("mean", "p50"), scores=("mean", "p95"), sweep=("p50", "p95"),
            mlflow_first=("mean", "p99"), mlflow_curves=_INTERVAL_AND_TAIL,
        ),
    ),
    Metric(
        "tpot_ms", "TPOT", "ms", "request", pl.when(_GAPS > 0).then((_LAST - _FIRST) / _GAPS * 1e3),
        "(last token − first token) / (output tokens − 1); none for one output token",
        shown=_FOR_A_USER,
    ),
    Metric(
        # Single precision: seven digits are more than clocks resolve, and there may be a hundred million gaps.
        "itl_ms", "ITL", "ms", "gaps",
        (pl.col("t_tokens").list.diff(null_behavior="drop") * 1e3).cast(pl.List(pl.Float32)),
        "each gap between two output tokens; all gaps of a cell together",
        shown=Shown(
            console=(), comparison=("p95",), narrative=("p95",), load=("p50", "p95", "p99"), load_panel="p99",
            length=(), sweep=(), plots=False, mlflow_curves=(),
        ),
    ),
    Metric(
        "e2e_ms", "E2E", "ms", "request", pl.when(_OK).then((_LAST - pl.col("t_intended")) * 1e3),
        "last token − intended arrival",
        grows_with_output=True,
        shown=Shown(
            narrative=("mean", "p95"), overview=True, load_table=False, load_panel="", length=(), plots=False,
            mlflow_first=("mean",),
        ),
    ),
    Metric(
        "queue_ms", "queue", "ms", "request", (pl.col("t_scheduled") - pl.col("t_intended")) * 1e3,
        "scheduled in the (prefill) engine − intended arrival; includes wp1's own delay",
        shown=_PHASE,
    ),
    Metric(
        "prefill_ms", "prefill", "ms", "request", (_COMPUTED - pl.col("t_scheduled")) * 1e3,
        "first token in the (prefill) engine − scheduled",
        shown=_PHASE,
    ),
    Metric(
        # Zero if the KV was there first, as after a copy within prefill's last step, whose end the engine stamps later:
        # nothing waited, and decoding counts from the end of prefill. Null if aggregated.
        "handoff_ms", "handoff", "ms", "request", ((_THERE - _COMPUTED) * 1e3).clip(lower_bound=0),
        "scheduled in the decode engine with its KV there − end of prefill; 0 if the KV was there first",
        shown=_PHASE,
    ),
    Metric(
        "decode_step_ms", "first decode step", "ms", "request", (_DECODED - _DECODABLE) * 1e3,
        "first token at the client that decoding produced − end of prefill or handoff",
        shown=_PHASE,
    ),
    Metric(
        "delivery_ms", "delivery", "ms", "request", (_FIRST - _DELIVERED) * 1e3,
        "first token at the client − the same token in its engine",
        shown=replace(_NOT_COMPARED, report=False),
    ),
    Metric(
        "client_delay_ms", "client delay", "ms", "request",
        (pl.col("t_sent") - pl.col("t_intended") - pl.col("held_s").fill_null(0.0)) * 1e3,
        "sent − intended arrival, less the time held back because too much was in flight",
        for_users=False, shown=_NOT_COMPARED,
    ),
    Metric(
        "decode_ms", "decode", "ms", "request", pl.when(_OK).then((_LAST - _DECODABLE) * 1e3),
        "last token at the client − end of prefill or handoff",
        grows_with_output=True, shown=replace(_PHASE, summary=False, report=False),
    ),
    Metric(
        "output_tokens_per_s", "output tokens/s", "tokens/s", "rate", pl.col("tokens_inside"),
        "output tokens of answered requests / seconds, summed over repeats",
        less_is_better=False, brief="tokens/s", grows_with_output=True,
        shown=Shown(console=(), length=(), plots=False, mlflow_curves=()),
    ),
    Metric(
        "requests_per_s", "requests/s", "requests/s", "rate", pl.col("ended_inside"),
        "requests answered / seconds, summed over repeats",
        less_is_better=False, grows_with_output=True,
        shown=Shown(
            report=False, console=(), narrative=(), load=(), load_panel="", length=(), sweep=(), plots=False,
            mlflow_curves=(),
        ),
    ),
    Metric(
        # Shown by load with its own interval (`load.figures`), and for the whole run (`slo.attainment`).
        "slo_attainment", "SLO attainment", "share", "share", pl.col("met_slo"),
        "requests that met every limit of slo / requests sent; a failed request is a miss",
        less_is_better=False, needs_slo=True,
        shown=Shown(
            summary=False, report=False, console=(), load=(), load_panel="", length=(), sweep=(), plots=False,
            mlflow_curves=(),
        ),
    ),
    Metric(
        "failed_share", "requests failed", "share", "share", pl.col("status") != "ok",
        "requests that were not answered / requests sent",
        spoken="the share of failed requests",
        shown=Shown(
            summary=False, report=False, console=(), load=(), load_panel="", length=(), sweep=(), plots=False,
            mlflow_curves=(),
        ),
    ),
)  # fmt: skip
# The consecutive phases that make up E2E, and TTFT if the decode engine makes the first token.
E2E_PHASES = ("queue_ms", "prefill_ms", "handoff_ms", "decode_ms")
TTFT_PHASES = ("queue_ms", "prefill_ms", "handoff_ms", "decode_step_ms")


def find(key: str) -> Metric | None:
    """The metric with this key, or None."""
    return next((metric for metric in METRICS if metric.key == key), None)


def title_of(key: str) -> str:
    """The title of an existing metric."""
    return next(metric.title for metric in METRICS if metric.key == key)


def of_kind(*kinds: Kind) -> list[Metric]:
    """The metrics of these kinds, in the table's order."""
    return [metric for metric in METRICS if metric.kind in kinds]


def summarised(*kinds: Kind) -> list[Metric]:
    """The metrics of these kinds that summary.json has."""
    return [metric for metric in of_kind(*kinds) if metric.shown.summary]


def shown_in(
    place: Literal["console", "comparison", "narrative", "load", "length", "scores", "sweep", "mlflow_first",
                   "mlflow_curves"],
) -> Iterator[Figure]:  # fmt: skip
    """The figures shown in a place of `Shown` that takes statistics, in the table's order."""
    for metric in METRICS:
        yield from metric.at(getattr(metric.shown, place))


def means_in(place: Literal["answers", "overview", "plots"]) -> list[Figure]:
    """The means of the metrics shown in a place of `Shown` that is on or off."""
    return [Figure(metric, "mean") for metric in METRICS if getattr(metric.shown, place)]
