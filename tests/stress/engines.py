"""Two engines without a model, built around the connector's real halves. They manage blocks as vLLM does.

A prompt's KV is a pattern derived from its number, so the reader of a block knows what it should contain. A freed block
is overwritten at once, so a read of freed memory is detected. Freeing a block twice or releasing a request twice is an
error. The file is longer than 400 lines because both engines share the cache and its pool.
"""

import pickle
import random
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from wp1.serving.transfer.ipc import exports
from wp1.serving.transfer.ipc.copying import copier_of
from wp1.serving.transfer.ipc.decode import DecodeScheduler
from wp1.serving.transfer.ipc.layout import layout_of
from wp1.serving.transfer.ipc.mailbox import Mailbox, Message, Sender
from wp1.serving.transfer.ipc.prefill import PrefillScheduler, PrefillWorker
from wp1.serving.transfer.ipc.receiver import Receiver

torch.set_num_threads(1)  # two processes share the cores; the tensors are small

BLOCK_TOKENS = 16
STEP_TOKENS, CHUNK_TOKENS = 160, 56  # limits of a prefill step: in all, and for one prompt
MOST_RUNNING = 16
AT_ONCE_TOKENS = 320  # largest prompt whose KV an idle decode engine loads within a step
PREEMPTED = 0.02  # share of steps with a preemption at random
FREED = 0xEE
FACTS = {"vllm": "none", "model": "pattern", "kv_dtype": "auto", "block_tokens": BLOCK_TOKENS}
PREFILL, DECODE = "prefill-0", "decode-0"


@dataclass(eq=False)
class Request:
    """The fields of vllm.v1.request.Request that the connector reads, and those that the engines here need."""

    request_id: str
    kv_transfer_params: dict[str, Any] | None
    prompt_token_ids: list[int]
    number: int = 0  # the prompt's number, which determines its KV
    output_len: int = 1
    num_preemptions: int = 0
    num_computed_tokens: int = 0
    output_token_ids: list[int] = field(default_factory=list)
    block_hashes: list[Any] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._all_token_ids = list(self.prompt_token_ids)

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.prompt_token_ids)

    def update_block_hashes(self) -> None:
        pass


def blocks_for(tokens: int) -> int:
    return -(-tokens // BLOCK_TOKENS)


def first_token(number: int) -> int:
    return 1 + number % 30_000


class Cache:
    """One rank's KV: two layers with K and V, and one with a single tensor, so that regions have two sizes."""

    def __init__(self, num_blocks: int, device: str, rank: int) -> None:
        self.rank = rank
        kinds: dict[str, tuple[int, ...]] = {
            "layers.0": (2, num_blocks, 4, BLOCK_TOKENS, 8),
            "layers.1": (2, num_blocks, 4, BLOCK_TOKENS, 8),
            "layers.2": (num_blocks, BLOCK_TOKENS, 24),
        }
        tensors = {name: torch.zeros(shape, dtype=torch.bfloat16, device=device) for name, shape in kinds.items()}
        pages = {name: tensor.nbytes // num_blocks for name, tensor in tensors.items()}
        self.layout = layout_of(tensors, pages, num_blocks)
        self._tensors = tensors
        # Views of the same memory, made without the code under test.
        self._parts = [
            part.view(torch.uint8).reshape(num_blocks, -1)
            for tensor in tensors.values()
            for part in (tensor if tensor.dim() == 5 else tensor[None])
        ]
        self._sizes = [part.shape[1] for part in self._parts]
        self._index = torch.arange(sum(self._sizes), device=device)

    def pattern(self, number: int, first: int, count: int) -> torch.Tensor:
        """Bytes of the blocks first, first + 1, ... of a prompt: (count, bytes)."""
        position = torch.arange(first, first + count, device=self._index.device)[:, None]
        factor = 2 * ((number * 31 + position * 17 + self.rank) % 128) + 1
        return ((self._index * factor + number * 101 + position * 7) & 0xFF).to(torch.uint8)

    def write(self, blocks: list[int], number: int, first: int) -> None:
        if blocks:
            data = self.pattern(number, first, len(blocks)).split(self._sizes, dim=1)
            for part, rows in zip(self._parts, data, strict=True):
                part[blocks] = rows

    def holds(self, blocks: list[int], number: int) -> bool:
        """Whether the blocks hold the KV of the prompt from its first block on."""
        data = torch.cat([part[blocks] for part in self._parts], dim=1)
        return torch.equal(data, self.pattern(number, 0, len(blocks)))

    def overwrite(self, blocks: list[int]) -> None:
        for part in self._parts:
            part[blocks] = FREED
        self.settle()

    def settle(self) -> None:
        """Waits for writes to complete. vLLM knows that a step's writes are complete once it has its tokens."""
        if self._index.is_cuda:
            torch.cuda.synchronize()


class Pool:
    """A pool of blocks, fragmented after a while. Block 0 is never used, as in vLLM."""

    def __init__(self, caches: list[Cache], num_blocks: int, chance: random.Random) -> None:
        self._caches = caches
        self._free = list(range(1, num_blocks))
        self._in_use: set[int] = set()
        self._chance = chance

    def give(self, count: int) -> list[int] | None:
        if count > len(self._free):
            return None
        at = self._chance.randrange(len(self._free) - count + 1)
        blocks = self._free[at : at + count]
        del self._free[at : at + count]
        self._in_use.update(blocks)
        return blocks

    def take_back(self, blocks: list[int]) -> None:
        assert self._in_use.issuperset(blocks), "blocks were freed that were not in use"
        assert len(set(blocks)) == len(blocks), "a block was freed twice"
        if blocks:
            for cache in self._caches:
                cache.overwrite(blocks)
        self._in_use.difference_update(blocks)
        self._free.extend(blocks)

    @property
    def in_use(self) -> int:
        return len(self._in_use)


class _Ranks:
    """Reports a request once all ranks have reported it, as vLLM's KVOutputAggregator does."""

    def __init__(self, ranks: int) -> None:
        self._ranks = ranks
        self._reports: Counter[str] = Counter()

    def reported_by_all(self, requests: set[str]) -> set[str]:
        self._reports.update(requests)
        complete = {name for name in requests if self._reports[name] == self._ranks}
        for name in complete:
            del self._reports[name]
        return complete


class PrefillEngine:
    """Computes prompts in chunks, preempts when blocks run out, and keeps blocks until the connector releases them."""

    def __init__(self, folder: Path, *, ranks: int, device: str, num_blocks: int, seed: int, lease_s: float) -> None:
        sender = Sender(folder)
        caches = [Cache(num_blocks, device, rank) for rank in range(ranks)]
        self._workers = []
        for cache in caches:
            box = f"{PREFILL}.{cache.rank}"
            exports.offer(folder / f"{box}.json", cache.layout, PREFILL, box, FACTS | {"device": device})
            mark = _event if device == "cuda" else _at_once
            checksum = copier_of(cache.layout).checksum
            self._workers.append(PrefillWorker(cache.rank, Mailbox(folder, box), sender, mark, checksum))
        self._caches = caches
        self._chance = random.Random(seed)
        self._pool = Pool(caches, num_blocks, self._chance)
        self._scheduler = PrefillScheduler(PREFILL, ranks, BLOCK_TOKENS, lease_s, sender)
        self._released = _Ranks(ranks)
        self._waiting: deque[Request] = deque()
        self._running: list[Request] = []
        self._held: dict[str, Request] = {}
        self.preemptions = 0

    def add(self, request: Request) -> None:
        self._waiting.append(request)

    def abort(self, name: str) -> bool:
        """Aborts a request. Returns False if it has ended already or is held for the decode engine."""
        for queue in (self._waiting, self._running):
            for request in queue:
                if request.request_id == name:
                    queue.remove(request)
                    assert self._scheduler.finished(request, request.blocks, False) is None
                    self._pool.take_back(request.blocks)
                    return True
        return False

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._running or self._held)

    @property
    def in_use(self) -> int:
        return self._pool.in_use

    def __str__(self) -> str:
        running = [(r.request_id, r.num_computed_tokens, len(r.blocks)) for r in self._running]
        waiting = [(r.request_id, blocks_for(r.num_prompt_tokens)) for r in self._waiting]
        return f"prefill: waiting {waiting}, running {running}, held {list(self._held)}, {self.in_use} blocks in use"

    def step(self) -> list[tuple[Request, dict[str, Any]]]:
        """One step. Returns the finished prompts, with the parameters for fetching their KV."""
        scheduled, grown = self._schedule()
        orders = self._scheduler.orders(scheduled, grown)
        done = []
        for request in list(self._running):
            self._compute(request, scheduled.get(request.request_id, 0))
            if request.num_computed_tokens == request.num_prompt_tokens:
                done.append(request)
        free = set.union(*(self._released.reported_by_all(worker.obey(orders)) for worker in self._workers))
        answers = []
        for cache in self._caches if done else ():
            cache.settle()
        for request in done:
            self._running.remove(request)
            request.output_token_ids.append(first_token(request.number))
            params = self._scheduler.finished(request, request.blocks, True)
            assert params is not None
            self._held[request.request_id] = request
            answers.append((request, params))
        for name in free:
            self._pool.take_back(self._held.pop(name).blocks)  # a KeyError means that a request was released twice
        return answers

    def _schedule(self) -> tuple[dict[str, int], list[tuple[str, list[int]]]]:
        budget, scheduled, grown = STEP_TOKENS, {}, []
        # Preempt now and then even if there is room.
        preempted = len(self._running) > 1 and self._chance.random() < PREEMPTED
        if preempted:
            self._preempt(self._running[-1], scheduled)
        for request in list(self._running):
            tokens = min(budget, CHUNK_TOKENS, request.num_prompt_tokens - request.num_computed_tokens)
            if request not in self._running or not tokens:
                continue
            needed = blocks_for(request.num_computed_tokens + tokens) - len(request.blocks)
            while (blocks := self._pool.give(needed)) is None and self._running[-1] is not request:
                self._preempt(self._running[-1], scheduled)
                preempted = True
            if blocks is None:
                break
            if blocks:
                request.blocks = request.blocks + blocks
                grown.append((request.request_id, blocks))
            scheduled[request.request_id] = tokens
            budget -= tokens
        while self._waiting and budget and len(self._running) < MOST_RUNNING and not preempted:
            request = self._waiting[0]
            tokens = min(budget, CHUNK_TOKENS, request.num_prompt_tokens)
            blocks = self._pool.give(blocks_for(tokens))
            if blocks is None:
                break
            self._running.append(self._waiting.popleft())
            request.blocks = blocks
            self._scheduler.allocated(request, blocks)
            scheduled[request.request_id] = tokens
            budget -= tokens
        return scheduled, grown

    def _preempt(self, request: Request, scheduled: dict[str, int]) -> None:
        self._running.remove(request)
        scheduled.pop(request.request_id, None)
        self._pool.take_back(request.blocks)
        request.blocks, request.num_computed_tokens = [], 0
        request.num_preemptions += 1
        self._waiting.appendleft(request)
        self.preemptions += 1

    def _compute(self, request: Request, tokens: int) -> None:
        first = request.num_computed_tokens // BLOCK_TOKENS
        request.num_computed_tokens += tokens
        end = request.num_computed_tokens // BLOCK_TOKENS
        if request.num_computed_tokens == request.num_prompt_tokens:
            end = blocks_for(request.num_prompt_tokens)
        for cache in self._caches:
            cache.write(request.blocks[first:end], request.number, first)


def _event() -> Any:
    event = torch.cuda.Event()
    event.record()
    return event.query


def _at_once() -> Any:
    return lambda: True


class DecodeEngine:
    """Loads the KV of prompts, checks it, and preempts now and then.

    cached: share of requests that find the beginning of their prompt in the prefix cache.
    """

    def __init__(
        self, folder: Path, *, ranks: int, device: str, num_blocks: int, seed: int, verify: bool, cached: float
    ) -> None:
        sender = Sender(folder)
        self._chance = random.Random(seed)
        self._cached = cached
        self._caches = [Cache(num_blocks, device, rank) for rank in range(ranks)]
        self._receivers = [_receiver(folder, sender, cache, device, verify) for cache in self._caches]
        at_once = 0 if verify else AT_ONCE_TOKENS
        box = Mailbox(folder, f"{DECODE}.scheduler")
        self._scheduler = DecodeScheduler(box, BLOCK_TOKENS, at_once, self._to_workers)
        self._sender = sender
        self._pool = Pool(self._caches, num_blocks, self._chance)
        self._here = _Ranks(ranks)
        self._waiting: deque[Request] = deque()
        self._loading: dict[str, Request] = {}
        self._running: list[Request] = []
        self._now: list[Request] = []  # requests whose KV is loaded within this step
        self._ahead: list[Request] = []  # requests reported as loaded before they are; the next step waits for their KV
        self._called: list[set[str]] = [
            set() for _ in range(ranks)
        ]  # per rank: requests reported ahead whose load has not ended
        self._failed_ahead: dict[str, str] = {}
        self._blocks_back: list[list[int]] = []  # freed once the next step's orders have been carried out
        self.preemptions = 0
        self.moved: Counter[str] = Counter()  # bytes and blocks as the connector counts them, and requests

    def _to_workers(self, message: Message) -> None:
        self.moved["in advance"] += 1
        for rank in range(len(self._receivers)):
            self._sender.send(f"{DECODE}.{rank}", message)

    def add(self, request: Request) -> None:
        self._waiting.append(request)

    def abort(self, name: str) -> bool:
        """Aborts a request. Returns False if it has ended already. A load in progress keeps its blocks to its end."""
        for queue in (self._waiting, self._running):
            for request in queue:
                if request.request_id == name:
                    queue.remove(request)
                    self._scheduler.finished(request)
                    self._pool.take_back(request.blocks)
                    return True
        for request in self._ahead:
            if request.request_id == name:
                self._ahead.remove(request)
                self._scheduler.finished(request)
                self._blocks_back.append(request.blocks)
                self._failed_ahead.pop(name, None)
                return True
        request = self._loading.get(name)
        if request is None or not request.output_len:
            return False
        request.output_len = 0
        self._scheduler.finished(request)
        return True

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._loading or self._ahead or self._running)

    @property
    def in_use(self) -> int:
        return self._pool.in_use

    def leftovers(self) -> int:
        """How many entries the connector's halves still hold for handoffs that have ended.

        Notes about abandoned handoffs are not counted: the latest REMEMBERED of them are kept on purpose.
        """
        half = self._scheduler
        count = len(half._waiting) + len(half._at_once) + len(half._decoding) + len(half._ahead)
        count += sum(map(len, self._called)) + len(self._failed_ahead)
        return count + sum(len(r._loads) + len(r._sources) + len(r._advanced) for r in self._receivers)

    def stop(self) -> None:
        for receiver in self._receivers:
            receiver.stop()

    def __str__(self) -> str:
        loads = [load for receiver in self._receivers for load in list(receiver._loads.values())]
        sources = [dict(receiver._sources) for receiver in self._receivers]
        waiting = [(request.request_id, blocks_for(request.num_prompt_tokens)) for request in self._waiting]
        kept = [dict(receiver._sender._queues) for receiver in self._receivers]
        orders = [list(receiver._orders) for receiver in self._receivers]
        return (
            f"decode: waiting {waiting}, loads {loads}, sources {sources}, orders {orders}, kept {kept}, "
            f"{self.in_use} blocks in use"
        )

    def step(self) -> list[tuple[Request, str | None]]:
        """One step. Returns the requests that ended without an abort, each with the error or None."""
        ended: list[tuple[Request, str | None]] = []
        while self._waiting and self._admit(self._waiting[0]):
            pass
        computing = [request.request_id for request in (*self._running, *self._now, *self._ahead)]
        orders = self._scheduler.orders(computing)
        for receiver in self._receivers:
            receiver.obey(pickle.loads(pickle.dumps(orders)))  # each worker gets its own copy
        while self._blocks_back:
            self._pool.take_back(self._blocks_back.pop())
        self._decode(ended)
        here, failed = self._results(orders.ahead)
        for request in self._ahead:
            self.moved["ahead"] += 1
            self._begun(request, self._failed_ahead.pop(request.request_id, None), ended)
        self._ahead = []
        for request in self._now:
            self.moved["at once"] += request.request_id not in failed
            self._begun(request, failed.pop(request.request_id, None), ended)
        self._now = []
        for name, why in failed.items():
            request = self._loading[name]
            if request.output_len:
                request.output_len = 0
                self._scheduler.finished(request)
                ended.append((request, why))
        self._scheduler.arrived(here)
        for name in here:
            request = self._loading.pop(name)
            called = any(name == ahead for ahead, _ in orders.ahead)
            if request.output_len and called:
                self._ahead.append(request)
            elif request.output_len:
                self._start(request)
            elif called:
                self._blocks_back.append(request.blocks)
                self._failed_ahead.pop(name, None)
            else:
                self._pool.take_back(request.blocks)
        return ended

    def _begun(self, request: Request, why: str | None, ended: list[tuple[Request, str | None]]) -> None:
        """Starts a request whose KV arrived within this step, or ends it with the error `why`."""
        if why is None:
            self._start(request)
            return
        self._scheduler.finished(request)
        self._pool.take_back(request.blocks)
        ended.append((request, why))

    def _results(self, ahead: list[tuple[str, str]]) -> tuple[set[str], dict[str, str]]:
        """Requests whose loads have ended, or were reported ahead, on all ranks; and errors by request."""
        here: set[str] = set()
        failed = {}
        for receiver, called in zip(self._receivers, self._called, strict=True):
            of_rank = list(receiver.not_over(ahead))
            called |= set(of_rank)
            while receiver.ended:
                end = receiver.ended.popleft()
                if not end.at_once and end.request not in called:
                    of_rank.append(end.request)
                if end.error is not None and end.request in called:
                    if any(request.request_id == end.request for request in (*self._ahead, *self._loading.values())):
                        self._failed_ahead[end.request] = end.error
                elif end.error is not None:
                    failed[end.request] = end.error
                elif end.report is not None:
                    self.moved.update(bytes=end.report[3], blocks=end.report[7], runs=end.report[8])
                called.discard(end.request)
            assert len(of_rank) == len(set(of_rank)), "a load ended twice"
            here |= self._here.reported_by_all(set(of_rank))
        return here, failed

    def _admit(self, request: Request) -> bool:
        """Admits the first waiting request if there are enough blocks for it."""
        params = request.kv_transfer_params
        cached = 0
        if params is not None and params["do_remote_prefill"] and self._chance.random() < self._cached:
            cached = self._chance.randrange(request.num_prompt_tokens // BLOCK_TOKENS + 1)
            cached = min(cached, (request.num_prompt_tokens - 1) // BLOCK_TOKENS)
        tokens, asynchronous = self._scheduler.to_come(request, cached * BLOCK_TOKENS)
        if tokens is None:
            self._waiting.rotate(-1)
            return False
        blocks = self._pool.give(blocks_for(request.num_prompt_tokens))
        if blocks is None:
            return False
        self._waiting.popleft()
        request.blocks = blocks
        for cache in self._caches:
            cache.write(blocks[:cached], request.number, 0)
            cache.settle()
        self._scheduler.allocated(request, blocks, tokens)
        request.num_computed_tokens = cached * BLOCK_TOKENS + tokens
        if tokens and asynchronous:
            self._loading[request.request_id] = request
            return True
        if tokens:
            self._now.append(request)
            return True
        # The whole prompt was cached, or the request was preempted and this engine recomputes the prompt.
        for cache in self._caches:
            cache.write(blocks[: blocks_for(request.num_prompt_tokens)], request.number, 0)
            cache.settle()
        self._start(request)
        return True

    def _start(self, request: Request) -> None:
        """Checks the request's KV and first token, then starts decoding."""
        params = request.kv_transfer_params
        assert params is not None
        whole = request.blocks[: blocks_for(params["wp1_tokens"])]
        for cache in self._caches:
            assert cache.holds(whole, request.number), f"the KV of {request.request_id} is not its prompt's"
        if params["wp1"].get("wants_token"):
            expected = first_token(request.number)
            assert (request.prompt_token_ids[-1], request._all_token_ids[-1]) == (expected, expected), (
                "the first token is wrong"
            )
        self._running.append(request)

    def _decode(self, ended: list[tuple[Request, str | None]]) -> None:
        for request in list(self._running):
            request.output_len -= 1
            if request.output_len <= 0:
                self._running.remove(request)
                self._scheduler.finished(request)
                self._pool.take_back(request.blocks)
                ended.append((request, None))
        if len(self._running) > 1 and self._chance.random() < PREEMPTED:
            request = self._running.pop()
            self._pool.take_back(request.blocks)
            request.blocks, request.num_computed_tokens = [], 0
            request.num_preemptions += 1
            self._waiting.appendleft(request)
            self.preemptions += 1


def _receiver(folder: Path, sender: Sender, cache: Cache, device: str, verify: bool) -> Receiver:
    box = f"{DECODE}.{cache.rank}"
    facts = FACTS | {"form": cache.layout.form, "device": device}
    receiver = Receiver(
        Mailbox(folder, box),
        sender,
        box,
        copier_of(cache.layout),
        cache.layout.block_bytes,
        lambda engine: exports.open_peer(folder / f"{engine}.{cache.rank}.json", facts),
        verify,
    )
    receiver.meet(PREFILL)
    receiver.start()
    return receiver
