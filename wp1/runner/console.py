"""A run's terminal output: the current step, progress, and at the end the results and where they are stored."""

import os
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self

import polars as pl
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

from wp1.analysis.base import aggregates, metrics
from wp1.analysis.base.cells import ordered
from wp1.analysis.base.markdown import percent
from wp1.analysis.base.run_tables import RunTables
from wp1.analysis.comparison import arms
from wp1.analysis.load import notes as load_notes
from wp1.core import labels, redaction
from wp1.core.records import RequestRecord
from wp1.core.run_files import RECORDS
from wp1.runner.budget import in_words
from wp1.workload.prompts import asks_questions

if TYPE_CHECKING:
    from wp1.runner.outcome import Outcome


class Screen:
    """Prints steps and progress to the terminal, even while standard output is redirected to a log."""

    def __init__(self) -> None:
        # A copy of the terminal's descriptor: engines and libraries may use the original.
        self._terminal = os.fdopen(os.dup(2), "w", buffering=1)
        # A log has no width of its own; its lines may be as long as the tables need.
        width = None if self._terminal.isatty() else 140
        self.console = Console(file=self._terminal, highlight=False, soft_wrap=True, width=width)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._terminal.close()

    def say(self, text: str) -> None:
        self.console.print(redaction.text(text), markup=False)

    def end(self, outcome: "Outcome", published: str | None) -> None:
        """Prints the results in a few lines, and where they are stored."""
        if outcome.summary is not None:
            for label in outcome.summary["labels"]:
                self.say(labels.in_words(label))
            self._results(outcome.run)
            for name in outcome.summary["profiling"].get("load", {}).get("cells", {}):
                for note in load_notes.notes(outcome.summary, name):
                    if not note.startswith("no steady"):
                        self.say(f"{name}: {note}")
            # A run that was interrupted or sent no requests has too little data for its checks.
            measured = outcome.summary["profiling"].get("latency", {}).get("overall", {}).get("requests", 1)
            for check in outcome.summary["checks"] if measured and outcome.status != "interrupted" else ():
                self.console.print("[green]✓" if check["passed"] else "[red]✗", f"{check['name']}: {check['detail']}")
        if outcome.status == "interrupted" and outcome.report is not None:
            self.where("plots", f"not made: {shlex.join(['python', '-m', 'wp1.report', _short(outcome.run_dir)])}")
        for name, path in (("report", outcome.report), ("records", RECORDS.at(outcome.run_dir))):
            if path is not None and path.exists():
                self.where(name, path)
        if published is not None:
            self.where("mlflow", published)

    def where(self, name: str, place: Path | str) -> None:
        """Prints where something is stored: a path, or MLflow's description of the place."""
        self.say(f"{name:8} {_short(place) if isinstance(place, Path) else place}")

    def _results(self, run: RunTables) -> None:
        """Prints questions and answers, or, for several arms or without questions, the medians of each cell."""
        answers = not arms.names_of(run.config) and asks_questions(run.config)
        measured = run.requests.filter(~pl.col("warmup"))
        if measured.is_empty():
            return
        if answers:
            self._answers(measured.filter(pl.col("repeat") == 0))
        else:
            self._medians(measured)

    def _medians(self, measured: pl.DataFrame) -> None:
        grid = Table(box=None, padding=(0, 2, 0, 0))
        grid.add_column("arm")
        grid.add_column("cell")
        shown = list(metrics.shown_in("console"))
        for title in ("ok", *(f"{figure.title}{_unit(figure)}" for figure in shown)):
            grid.add_column(title, justify="right")
        for cell in ordered(measured["cell"]):
            of_cell = measured.filter(pl.col("cell") == cell)
            for arm in of_cell["arm"].unique().sort():
                latency = aggregates.latency(of_cell.filter(pl.col("arm") == arm))
                grid.add_row(
                    Text(arm),
                    Text(cell),
                    f"{latency['ok']}/{latency['requests']}",
                    *(_number(figure.value_in(latency), figure) for figure in shown),
                )
        self.console.print(grid)

    def _answers(self, rows: pl.DataFrame, most: int = 8) -> None:
        rows = rows.head(most)
        grid = Table(box=None, padding=(0, 2, 0, 0), expand=True)
        for title in ("question", "answer"):
            grid.add_column(title, overflow="ellipsis", no_wrap=True, ratio=1)
        shown = metrics.means_in("answers")
        for title in ("prompt tok", "out tok", *(f"{figure.metric.title}{_unit(figure)}" for figure in shown)):
            grid.add_column(title, justify="right")
        for row in rows.iter_rows(named=True):
            answer = " ".join(row["text"].split()) if row["status"] == "ok" else f"{row['status']}: {row['error']}"
            numbers = [_number(row[figure.metric.key], figure) for figure in shown]
            grid.add_row(
                Text(row["label"]),
                Text(answer or "(token ids)"),
                str(row["prompt_tokens"] or "—"),
                str(row["output_tokens"]),
                *numbers,
            )
        self.console.print(grid)

    @contextmanager
    def step(self, text: str, kept: bool = True) -> Iterator[Callable[[str], None]]:
        """Shows a line with a running clock; yields a function that adds what is being done.

        kept: whether the line stays afterwards. A log gets only lines that stay.
        """
        if not kept and not self.console.is_terminal:
            yield lambda what: None
            return
        with Progress(
            SpinnerColumn(finished_text="[green]✓"), TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(), console=self.console, redirect_stdout=False, redirect_stderr=False,
            transient=not kept,
        ) as progress:  # fmt: skip
            task = progress.add_task(text, total=1)
            try:
                yield lambda what: progress.update(task, description=f"{text}: {what}")
            except BaseException:
                # The error is reported elsewhere, on a line of its own.
                progress.update(task, visible=False)
                raise
            progress.update(task, completed=1, description=text)

    @contextmanager
    def requests(self, text: str, total: int) -> Iterator["Tally"]:
        """Shows a progress bar of requests, with the number of failures and the time left for the whole run."""
        left = _Left()
        with Progress(
            SpinnerColumn(finished_text="[green]✓"), TextColumn("{task.description}"), BarColumn(),
            MofNCompleteColumn(), TimeElapsedColumn(), left,
            console=self.console, redirect_stdout=False, redirect_stderr=False,
        ) as progress:  # fmt: skip
            tally = Tally(progress, text, total)
            left.tally = tally
            yield tally


class _Left(ProgressColumn):
    """The time left for the whole run."""

    max_refresh = 1.0
    tally: "Tally | None" = None

    def render(self, task: Task) -> Text:
        seconds = None if self.tally is None else self.tally.left_s(time.monotonic())
        # Nothing when the last request of the last cell is answered.
        return Text("" if seconds is None or seconds < 0.5 else f"about {in_words(seconds)} to go")


class Tally:
    """Counts the requests of one bar, and estimates the time left from predictions and from their pace."""

    def __init__(self, progress: Progress, text: str, total: int) -> None:
        self._progress, self._text, self._failed = progress, text, 0
        self._task = progress.add_task(text, total=total)
        self._begin, self._requests, self._ended = time.monotonic(), total, 0
        self._span_s = 0.0
        self._expected_s: float | None = None
        self._rest_s: float | None = None

    def expect(self, requests: int, span_s: float, expected_s: float | None, rest_s: float | None) -> None:
        """Starts a repeat. requests: their number; span_s: seconds over which they are sent; expected_s: seconds that
        the repeat is expected to take; rest_s: seconds for the rest of the run after it."""
        self._begin, self._requests, self._ended = time.monotonic(), requests, 0
        self._span_s, self._expected_s, self._rest_s = span_s, expected_s, rest_s

    def left_s(self, now: float) -> float | None:
        """Seconds until the run ends; None if unknown."""
        passed = now - self._begin
        if self._ended:
            # This repeat's own pace is a better guide than a prediction from other cells.
            here = max(self._span_s - passed, passed / self._ended * (self._requests - self._ended))
        elif self._expected_s is not None:
            here = max(0.0, self._span_s - passed, self._expected_s - passed)
        else:
            return None
        return None if self._rest_s is None else max(0.0, here) + self._rest_s

    def add(self, record: RequestRecord) -> None:
        self._ended += 1
        self._failed += record.status != "ok"
        description = f"{self._text} [red]({self._failed} failed)" if self._failed else self._text
        self._progress.update(self._task, advance=1, description=description)


def _unit(figure: metrics.Figure) -> str:
    """The unit to append to the figure's title; "" for a rate, whose title has its unit."""
    return f" {figure.metric.unit}" if figure.metric.of_one_request else ""


def _number(value: float | None, figure: metrics.Figure) -> str:
    if value is None:
        return "—"
    return percent(value) or "" if figure.metric.unit == "share" else f"{value:,.1f}"


def _short(path: Path) -> str:
    """The path, relative to the current folder if it is inside."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
