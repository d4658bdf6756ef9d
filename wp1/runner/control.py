"""Sends some measured requests again, to explain outputs that differ between arms. The results are in no figure.

Greedy decoding takes the most likely token. If the two most likely are close, rounding decides, and another batch
rounds differently, so a difference between arms proves nothing by itself. Sending a request to the same arm again shows
whether the arm agrees with itself, and log-probabilities show how close the two tokens were. Log-probabilities cost
time at every step, so measured requests do not ask for them.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from wp1.core.records import Request, RequestRecord, common_name
from wp1.runner.load_generator import drive
from wp1.serving.backend import Scheduler

# Time limit, counted from the first answer because the engine may compile for log-probabilities before it. With long
# prompts on a CPU, fewer requests are sent again.
ENOUGH_S = 20.0


def count_of(cfg: Any) -> int:
    """How many first requests of a cell are sent again; 0 if outputs are sampled, as they differ by chance anyway."""
    return cfg.experiment.control if cfg.workload.temperature == 0 else 0


class Control:
    """Selects and sends the control requests of a run.

    count: number of first requests of each cell to send again, and the limit on further ones whose tokens differed from
    another arm or repeat; 0: none. alike: whether repeats send the same prompts.
    """

    def __init__(self, count: int, alike: bool) -> None:
        self._count, self._alike = count, alike
        self._answers: dict[str, int] = {}  # hash of the first answer's tokens, by `common_name`
        self._parted: set[str] = set()

    def note(self, record: RequestRecord) -> None:
        """Notes the tokens of a measured request that has ended."""
        if not self._count or record.warmup or record.status != "ok":
            return
        tokens = hash(tuple(record.token_ids))
        if self._answers.setdefault(common_name(record.request_id, self._alike), tokens) != tokens:
            self._parted.add(record.request_id)

    async def ask(
        self, scheduler: Scheduler, batches: Mapping[int, Sequence[Request]], sink: Callable[[RequestRecord], None]
    ) -> None:
        """Sends a cell's control requests, one at a time, for up to ENOUGH_S seconds.

        batches: the requests of the repeats just measured, by repeat.
        """
        first: float | None = None
        for request, parted in self._chosen(batches):
            if not scheduler.alive or (first is not None and time.monotonic() - first > ENOUGH_S):
                return

            def marked(record: RequestRecord, parted: bool = parted) -> None:
                record.parted = parted  # pyright: ignore[reportAttributeAccessIssue]
                sink(record)

            # Marked as warm-up, so that its handoff is in no figure.
            again = dataclasses.replace(request, warmup=True, margins=True)
            await drive(scheduler, [again], marked, None, 1)
            first = first or time.monotonic()

    def _chosen(self, batches: Mapping[int, Sequence[Request]]) -> Iterator[tuple[Request, bool]]:
        """Yields requests to send again, first those of repeat 0, then those whose tokens differed (True)."""
        first = list(batches.get(0, ())[: self._count])
        yield from ((request, False) for request in first if self._askable(request))
        if not self._parted:
            return
        left, asked = self._count, {request.request_id for request in first}
        for request in (request for batch in batches.values() for request in batch):
            if left and request.request_id in self._parted - asked:
                left -= 1
                yield request, True

    def _askable(self, request: Request) -> bool:
        """Whether the request has been answered, and with generated tokens, not just its prompt's likelihood."""
        return request.nll_window is None and common_name(request.request_id, self._alike) in self._answers
