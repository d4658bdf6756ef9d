"""Some measured requests are asked again, so that parting tokens can be judged. What comes of it is in no figure.

Greedy decoding takes the best token. Where the two best are close, rounding decides between them, and another batch
rounds another way; so tokens that part prove nothing by themselves. Asked again of the same arm, a request shows
whether that arm agrees with itself, and its log-probabilities show how close the two best tokens were. They cost time
at every step, so measured requests do without them.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from wp1.core.records import Request, RequestRecord, common_name
from wp1.runner.load_generator import drive
from wp1.serving.backend import Scheduler

# Seconds after the first answer, in which an engine may still compile what it needs for log-probabilities: of long
# prompts on a CPU fewer are asked again.
ENOUGH_S = 20.0


def count_of(cfg: Any) -> int:
    """How many requests of a cell are asked again by their place; sampled answers differ by chance, and none is."""
    return cfg.experiment.control if cfg.workload.temperature == 0 else 0


class Control:
    """The control of a run.

    count: requests of each cell that are asked again by their place in it, and as many at most whose tokens were others
    before, in another arm or repeat; 0: none. alike: repeats ask the same.
    """

    def __init__(self, count: int, alike: bool) -> None:
        self._count, self._alike = count, alike
        self._answers: dict[str, int] = {}  # of the arm and repeat that came first; a hash of the tokens
        self._parted: set[str] = set()

    def note(self, record: RequestRecord) -> None:
        """A measured request has ended."""
        if not self._count or record.warmup or record.status != "ok":
            return
        tokens = hash(tuple(record.token_ids))
        if self._answers.setdefault(common_name(record.request_id, self._alike), tokens) != tokens:
            self._parted.add(record.request_id)

    async def ask(
        self, scheduler: Scheduler, batches: Mapping[int, Sequence[Request]], sink: Callable[[RequestRecord], None]
    ) -> None:
        """Asks again what is to be asked of a cell, one request at a time, until ENOUGH_S are over.

        batches: the requests of its repeats that have just been measured.
        """
        first: float | None = None
        for request, parted in self._chosen(batches):
            if not scheduler.alive or (first is not None and time.monotonic() - first > ENOUGH_S):
                return

            def marked(record: RequestRecord, parted: bool = parted) -> None:
                record.parted = parted  # pyright: ignore[reportAttributeAccessIssue]
                sink(record)

            # As a warm-up's, its handoff is in no figure.
            again = dataclasses.replace(request, warmup=True, margins=True)
            await drive(scheduler, [again], marked, None, 1)
            first = first or time.monotonic()

    def _chosen(self, batches: Mapping[int, Sequence[Request]]) -> Iterator[tuple[Request, bool]]:
        """Requests, and whether each is asked because its tokens parted: the first of repeat 0, then parted ones."""
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
        """Whether it was answered, and by more than the likelihood of its prompt."""
        return request.nll_window is None and common_name(request.request_id, self._alike) in self._answers
