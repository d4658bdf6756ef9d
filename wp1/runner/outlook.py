"""Predicts the time left for a run, and which cells do not fit into its time limits.

It applies the rule of `wp1.runner.budget` to a run in progress.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from wp1.core.plan import Arm, Cell
from wp1.core.progress import Done
from wp1.runner.budget import Floor, Repeat, at_least, floor_of, in_words, left_of_begun, predict, repeat_of
from wp1.serving.engines import needs_of


@dataclass
class Outlook:
    """The data that a run's predictions are made from; the run fills `done`, `skipped` and `starts` as it proceeds."""

    arms: Sequence[Arm]
    floors: Mapping[str, Floor | None]  # by arm
    requests_of: Callable[[Cell], int]  # of one repeat
    timeout_s: float  # of a request
    budget_s: float | None  # of all cells
    done: Sequence[Done]
    skipped: Sequence[Mapping[str, Any]]  # as in run_metadata.json
    starts: Sequence[Mapping[str, Any]]  # of engines, as in run_metadata.json
    starts_left: int = 0
    searches_s: float = 0.0  # time budget of the searches for goodput still to come
    warmups: dict[str, list[Repeat]] = field(default_factory=dict)  # by arm
    counts: dict[str, int] = field(default_factory=dict)

    def before(self, arm: Arm) -> list[Repeat]:
        """The repeats measured so far in an arm."""
        cells = {cell.name: cell for cell in arm.cells}
        return [
            repeat_of(cells[one.cell], one.requests, one.seconds + one.warmup_s)
            for one in self.done
            if one.arm == arm.name and one.cell in cells
        ]

    def reason_to_skip(self, arm: Arm, cell: Cell, spent_s: float) -> tuple[str, float] | None:
        """The reason to skip a cell that has not begun, and the seconds that it would take; None if it can be measured.

        spent_s: seconds that the run has taken, plus those promised to cells that have begun. The first cell is never
        skipped.
        """
        before, floor = self.before(arm), self.floors[arm.name]
        if not before:
            return None
        one = at_least(cell.prompt_len, before, floor)
        if one is not None and one > self.timeout_s:
            most = f"workload.timeout_s={self.timeout_s:g}"
            return f"a request would take about {in_words(one)}, more than {most}: raise that to measure it", one
        seconds = predict(self._repeat(cell), before, floor)
        if self.budget_s is None or seconds is None:
            return None
        all_of_it = cell.repeats * len(self.arms) * seconds
        if spent_s + all_of_it <= self.budget_s:
            return None
        return (
            f"would take about {all_of_it:,.0f} s; {spent_s:,.0f} s of experiment.time_budget_s={self.budget_s:g} "
            "are spent or promised to cells begun before",
            all_of_it,
        )

    def promised(self) -> float:
        """Seconds needed to complete the cells that have begun."""
        planned = {cell.name for arm in self.arms for cell in arm.cells}
        done = [one for one in self.done if one.cell in planned]
        return left_of_begun(done, self.arms[0].cells[0].repeats * len(self.arms))

    def one_repeat(self, arm: Arm, cell: Cell) -> float | None:
        """Seconds that one repeat will take, predicted from its own arm, else from another, else from the warm-up."""
        others = (self.before(other) for other in self.arms if other is not arm)
        known = self.before(arm) or next((found for found in others if found), None)
        known = known or self.warmups.get(arm.name) or next(iter(self.warmups.values()), [])
        return predict(self._repeat(cell), known, self.floors[arm.name])

    def left(self, spent_s: float, now: tuple[str, str, int] | None = None) -> float | None:
        """Estimated seconds until the run ends; None if there is nothing to estimate from.

        Does not count cells that will be skipped for time. now: arm, cell and number of repeats being measured, which
        are not counted either.
        """
        total = 0.0
        for name, of_cell in self._cells().items():
            needed = [self._needed(arm, cell, now) for arm, cell in of_cell]
            if any(seconds is None for seconds in needed):
                return None
            seconds = sum(one for one in needed if one is not None)
            begun = (now is not None and now[1] == name) or any(one.cell == name for one in self.done)
            if begun or self._fits(of_cell[0], seconds, spent_s + total):
                total += seconds
        start_s = [one["seconds"] for one in self.starts]
        return total + self.searches_s + self.starts_left * (sum(start_s) / len(start_s) if start_s else 0.0)

    def said(self, spent_s: float) -> str | None:
        """The estimate of the time left as text for the screen; None if there is nothing to estimate from."""
        seconds = self.left(spent_s)
        if seconds is None:
            return None
        budget = (
            "" if self.budget_s is None else f"; cells beyond experiment.time_budget_s={self.budget_s:g} are skipped"
        )
        if self.warmups or self.done:
            return f"about {in_words(seconds)} to go, estimated from the requests so far{budget}"
        late = [
            cell.prompt_len
            for ((arm, cell), *_) in self._cells().values()
            if (floor := self.floors[arm.name]) and cell.prompt_len and floor(cell.prompt_len) > self.timeout_s
        ]
        timeout = f"; a request of {min(late):,} tokens or more would take longer than " if late else ""
        timeout += f"workload.timeout_s={self.timeout_s:g}" if late else ""
        return f"at least {in_words(seconds)}, even at this device's peak rates{timeout}{budget}"

    def _cells(self) -> dict[str, list[tuple[Arm, Cell]]]:
        """All cells that are not skipped, by name, with their arms."""
        by_name: dict[str, list[tuple[Arm, Cell]]] = {}
        skipped = {one["cell"] for one in self.skipped}
        for arm in self.arms:
            for cell in arm.cells:
                if cell.name not in skipped:
                    by_name.setdefault(cell.name, []).append((arm, cell))
        return by_name

    def _needed(self, arm: Arm, cell: Cell, now: tuple[str, str, int] | None) -> float | None:
        measured = sum(one.arm == arm.name and one.cell == cell.name for one in self.done)
        measured += now[2] if now is not None and now[:2] == (arm.name, cell.name) else 0
        repeats = max(0, cell.repeats - measured)
        one = self.one_repeat(arm, cell) if repeats else 0.0
        return None if one is None else repeats * one

    def _fits(self, first: tuple[Arm, Cell], seconds: float, spent_s: float) -> bool:
        """Whether a cell that has not begun is expected to be measured."""
        arm, cell = first
        known = self.before(arm) or self.warmups.get(arm.name, [])
        one = at_least(cell.prompt_len, known, self.floors[arm.name])
        if one is not None and one > self.timeout_s:
            return False
        return not known or self.budget_s is None or spent_s + seconds <= self.budget_s

    def _repeat(self, cell: Cell) -> Repeat:
        if cell.name not in self.counts:
            self.counts[cell.name] = self.requests_of(cell)
        return repeat_of(cell, self.counts[cell.name])


def floors(cfg: Any, prepared: Any) -> dict[str, Floor | None]:
    """The lower bound on a request's time, by arm, from the model's shape and the device's peaks, if both are known."""
    return {
        arm.name: floor_of(
            prepared.models[arm.name].shape,
            prepared.peaks,
            cfg.workload.output_len,
            max(need.gpus for need in needs_of(arm.scheduler)),
        )
        for arm in prepared.arms
    }
