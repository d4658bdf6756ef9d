"""The prefill engine's halves of the connector: they announce blocks to decode engines and keep them until read.

In the scheduler's process, `PrefillScheduler` knows which blocks a prompt fills and when its last token was computed.
In each worker, `PrefillWorker` knows when a chunk's kernels have ended and which blocks have been read. Neither imports
vllm; the docstrings name the vLLM types that they are given.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from wp1.serving.transfer.ipc.mailbox import Mailbox, Message, Sender, pack

# Added to a lease, for a decode engine that began to read before the lease ended.
GRACE_S = 2.0


@dataclass(frozen=True, slots=True)
class Hold:
    """Blocks that are kept until their reader releases them, or until `until` (monotonic seconds) plus GRACE_S."""

    request: str
    handoff: str
    until: float
    blocks: list[int]


@dataclass(frozen=True, slots=True)
class Ready:
    """Blocks first, first + 1, ... of a prompt, which are complete once this step has been computed."""

    handoff: str
    reader: str
    epoch: int
    first: int
    blocks: list[int]


@dataclass(slots=True)
class PrefillOrders:
    """Orders of the scheduler's half to the workers, sent with each step."""

    ready: list[Ready] = field(default_factory=list)
    holds: list[Hold] = field(default_factory=list)


@dataclass(slots=True)
class _Prompt:
    """A prompt that is being computed."""

    request: Any
    blocks: list[int]
    announced: int = 0  # number of its blocks
    epoch: int = 0  # how often it was restarted in other blocks


class PrefillScheduler:
    """Tracks each prompt that will be handed over, in the process of the engine's scheduler.

    ranks: number of workers in this engine, and in each decode engine.
    """

    def __init__(self, engine: str, ranks: int, block_tokens: int, lease_s: float, sender: Sender) -> None:
        self._engine = engine
        self._ranks = ranks
        self._block_tokens = block_tokens
        self._lease_s = lease_s
        self._sender = sender
        self._prompts: dict[str, _Prompt] = {}
        self._orders = PrefillOrders()

    def allocated(self, request: Any, blocks: list[int]) -> None:
        """vLLM allocated these blocks to a request (vllm.v1.request.Request): the first, or all after a preemption."""
        if _ours(request) is None:
            return
        prompt = self._prompts.setdefault(request.request_id, _Prompt(request, blocks))
        prompt.blocks = list(blocks)
        if prompt.epoch != request.num_preemptions:
            prompt.epoch, prompt.announced = request.num_preemptions, 0

    def orders(self, scheduled: dict[str, int], grown: Iterable[tuple[str, list[int]]]) -> PrefillOrders:
        """This step's orders to the workers: blocks to announce and blocks to keep.

        scheduled: tokens by request in this step, not yet counted as computed; grown: blocks that requests were
        allocated in addition to those passed to `allocated`.
        """
        for name, blocks in grown:
            if name in self._prompts:
                self._prompts[name].blocks.extend(blocks)
        for name, tokens in scheduled.items():
            prompt = self._prompts.get(name)
            reader = _ours(prompt.request)["to"] if prompt is not None else None
            if prompt is None or reader is None:
                continue
            computed = prompt.request.num_computed_tokens + tokens
            if computed >= prompt.request.num_prompt_tokens:
                last = {"kind": "last", "handoff": _ours(prompt.request)["handoff"]}
                self._send(reader, last, [f"{reader}.scheduler"])
            complete = min(computed, prompt.request.num_prompt_tokens) // self._block_tokens
            # The final chunk is announced together with the first output token, by `finished`.
            if prompt.announced < complete and computed < prompt.request.num_prompt_tokens:
                blocks = prompt.blocks[prompt.announced : complete]
                handoff = _ours(prompt.request)["handoff"]
                self._orders.ready.append(Ready(handoff, reader, prompt.epoch, prompt.announced, blocks))
                prompt.announced = complete
        orders, self._orders = self._orders, PrefillOrders()
        return orders

    def finished(self, request: Any, blocks: list[int], succeeded: bool) -> dict[str, Any] | None:
        """A request has ended: tells its reader. Returns the parameters that fetch its KV, or None if there is none."""
        ours = _ours(request)
        prompt = self._prompts.pop(request.request_id, None)
        if ours is None:
            return None
        handoff, reader = ours["handoff"], ours["to"]
        # A prompt that is preempted while its token is in flight may end with that token after its blocks were freed.
        complete = len(blocks) * self._block_tokens >= request.num_prompt_tokens
        if not (succeeded and complete and prompt is not None and prompt.epoch == request.num_preemptions):
            why = f"{self._engine} gave up the prompt"
            self._send(reader, {"kind": "failed", "handoff": handoff, "why": why}, self._workers(reader))
            return None
        until = time.monotonic() + self._lease_s
        done = {
            "handoff": handoff,
            "epoch": prompt.epoch,
            "blocks": pack(blocks),
            "until": until,
            "token": request.output_token_ids[0],
        }
        # The reader's scheduler first, so that it knows the first token before any of its workers has the blocks.
        self._send(reader, {"kind": "done", **done}, [f"{reader}.scheduler", *self._workers(reader)])
        self._orders.holds.append(Hold(request.request_id, handoff, until, blocks))
        return {"do_remote_prefill": True, "do_remote_decode": False, "remote_engine_id": self._engine, "wp1": done}

    def _workers(self, reader: str | None) -> list[str]:
        return [f"{reader}.{rank}" for rank in range(self._ranks)]

    def _send(self, reader: str | None, message: Message, boxes: list[str]) -> None:
        for box in boxes if reader is not None else ():
            self._sender.send(box, message)


def _ours(request: Any) -> Any:
    params = request.kv_transfer_params
    return params.get("wp1") if params and params.get("do_remote_decode") else None


class PrefillWorker:
    """Announces chunks whose kernels have ended, and keeps blocks until they are released; on one rank.

    mark: returns a function that reports whether all work launched before `mark` has ended.
    checksum: of blocks, for readers that ask for it.
    """

    def __init__(
        self,
        rank: int,
        mailbox: Mailbox,
        sender: Sender,
        mark: Callable[[], Callable[[], bool]],
        checksum: Callable[[list[int]], int],
    ) -> None:
        self._rank = rank
        self._mailbox = mailbox
        self._sender = sender
        self._mark = mark
        self._checksum = checksum
        self._computing: deque[tuple[Callable[[], bool], list[Ready]]] = deque()
        self._held: dict[str, Hold] = {}
        self._released: dict[str, float] = {}  # handoff: when its release arrived, which may be before its hold
        self._asked: dict[str, Message] = {}  # handoff: a reader's request for its checksum

    def obey(self, orders: PrefillOrders) -> set[str]:
        """Called after a step is launched: carries out its orders; returns the requests whose blocks can be freed."""
        if orders.ready:
            self._computing.append((self._mark(), orders.ready))
        while self._computing and self._computing[0][0]():
            for ready in self._computing.popleft()[1]:
                message = {"kind": "ready", "handoff": ready.handoff, "epoch": ready.epoch, "first": ready.first}
                self._sender.send(f"{ready.reader}.{self._rank}", message | {"blocks": pack(ready.blocks)})
        for hold in orders.holds:
            self._held[hold.handoff] = hold
        now = time.monotonic()
        for message in self._mailbox.waiting():
            if message["kind"] == "release":
                self._released[message["handoff"]] = now
            else:
                self._asked[message["handoff"]] = message
        self._sum_up()
        free = [hold for hold in self._held.values() if hold.handoff in self._released or now > hold.until + GRACE_S]
        for hold in free:
            del self._held[hold.handoff]
            self._released.pop(hold.handoff, None)
        # Prompts that were given up never get a hold, so their releases would stay.
        while len(self._released) > 1000 and now - next(iter(self._released.values())) > 600:
            del self._released[next(iter(self._released))]
        return {hold.request for hold in free}

    def _sum_up(self) -> None:
        for handoff, ask in list(self._asked.items()):
            hold = self._held.get(handoff)
            if handoff in self._released:
                del self._asked[handoff]
            elif hold is not None:
                del self._asked[handoff]
                blocks = hold.blocks[ask["first"] : ask["first"] + ask["blocks"]]
                self._sender.send(ask["reader"], {"kind": "sum", "handoff": handoff, "sum": self._checksum(blocks)})
