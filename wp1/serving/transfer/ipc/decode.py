"""The decode engine's half of the connector beside its scheduler: which blocks are to be taken over, and for whom.

There are two ways. Beside the engine's steps, as the blocks get ready: vLLM gives the request its blocks at once and
schedules it when it hears that all is there, up to two idle steps of a millisecond later. Or within the step that
computes the first token, when the prompt is done: that wins those milliseconds where nobody else is decoding, who would
have to wait for the copy, and where the copy is short. It then is under way by mail while the step is still prepared.

Where nobody at all would have to wait and the step needs nothing but the KV (first_token=decode), vLLM hears that all
is there while the prompt's last chunk is still computed. Its rests and the preparation of the step, which grows with
the prompt, pass in that time, and the step waits for the KV before it computes. Not with prefix caching: others find
blocks once vLLM heard that they are here, also where their request is then given up and they never are.
"""

from collections.abc import Callable, Collection
from typing import Any

from wp1.serving.transfer.ipc.mailbox import Mailbox, Message
from wp1.serving.transfer.ipc.receiver import REMEMBERED, DecodeOrders, Load, in_advance

# Steps without work after which an engine that waits for KV does so in peace, and for how long at a time. As many may
# be on their way in the GPU, whose outcome must not wait.
IDLE_STEPS = 3
IDLE_WAIT_S = 0.005


class DecodeScheduler:
    """Follows each request whose KV comes from elsewhere, in the process of the engine's scheduler."""

    def __init__(
        self,
        mailbox: Mailbox,
        block_tokens: int,
        at_once_tokens: int = 0,
        to_workers: Callable[[Message], None] = lambda _: None,
        foresees: bool = True,
    ) -> None:
        """at_once_tokens: up to how many tokens' KV is taken over within a step; to_workers: sends to receivers.

        foresees: whether a step may wait for the end of its prompt.
        """
        self._mailbox = mailbox
        self._to_workers = to_workers
        self._block_tokens = block_tokens
        self._at_once_tokens = at_once_tokens
        self._foresees = foresees
        self._waiting: dict[str, Any] = {}  # vllm.v1.request.Request by id, until its KV is here
        self._at_once: dict[str, tuple[int, Message]] = {}  # tokens cached here, and the source's word, until allocated
        self._decoding: set[str] = set()
        self._ahead: dict[str, str] = {}  # handoffs by request, from when their KV is called here until a step needs it
        self._sources: set[str] = set()  # engines that KV came from
        self._last: dict[str, None] = {}  # handoffs whose last chunk is being computed
        self._done: dict[str, Message] = {}  # by handoff, as the prefill engine says
        self._orders = DecodeOrders()
        self._kept: list[tuple[str, int]] = []  # rows of `wp1.serving.transfer.Kept`
        self._idle = 0
        self._listened = False  # in this step

    def to_come(self, request: Any, computed: int) -> tuple[int | None, bool]:
        """Tokens beyond the first `computed` whose KV comes from elsewhere, and whether beside the engine's steps.

        None: not known yet, ask again.
        """
        self._at_once.pop(request.request_id, None)
        params = _ours(request)
        if params is None:
            return 0, False
        self._sources.add(params["remote_engine_id"])
        tokens = max(0, params["wp1_tokens"] - computed)
        if tokens == 0:
            # All of it is cached here, and the token after it comes from the prefill engine all the same.
            known = not params["wp1"].get("wants_token") or self._awaited(params) is not None
            return (0 if known else None), False
        foreseen = self._foreseeable(params) and self._done_of(params) is None
        if tokens > self._at_once_tokens or self._decoding or foreseen:
            return tokens, True
        done = self._awaited(params)
        if done is None:
            return None, False
        self._at_once[request.request_id] = (computed, done)
        self._place_token(request, done)
        # A step computes one token at least: where the prompt ends there, its last once more.
        return min(tokens, request.num_prompt_tokens - 1 - computed), False

    def _foreseeable(self, params: Any) -> bool:
        """Whether a step for this request may wait for the end of its prompt.

        That holds up everybody else, so there must be one prefill engine: no other prompt then ends much before.
        """
        asked_early = "blocks" not in params["wp1"] and not params["wp1"].get("wants_token")
        return asked_early and self._foresees and self._at_once_tokens > 0 and len(self._sources) == 1

    def _awaited(self, params: Any) -> Message | None:
        """The same as `_done_of`, where nothing else is to be done after a moment of listening."""
        if self._done_of(params) is None:
            self._listen()
        return self._done_of(params)

    def _done_of(self, params: Any) -> Message | None:
        """What the prefill engine says of a prompt that is done."""
        if "blocks" in params["wp1"]:
            return params["wp1"]
        self._hear()
        return self._done.get(params["wp1"]["handoff"])

    def _listen(self) -> None:
        """Waits a moment for a word, once a step, in an engine that has nothing else to do.

        vLLM asks again every millisecond, and each time the whole engine steps; on a CPU that is at the cost of the
        engine that computes the prompt. The word that is waited for ends this at once. It has come already where a
        prompt is done whose KV is still to come: a step sees that, which nobody may hold up.
        """
        if self._idle <= IDLE_STEPS or self._listened or self._ahead:
            return
        if any(self._done_of(request.kv_transfer_params) is not None for request in self._waiting.values()):
            return
        self._listened = True
        self._mailbox.wait(IDLE_WAIT_S)

    def allocated(self, request: Any, blocks: list[int], tokens: int) -> None:
        """vLLM gave the request these blocks, in which the KV of the last `tokens` tokens to come goes."""
        params = _ours(request)
        if request.request_id in self._waiting:
            return
        if params is None:
            self._decoding.add(request.request_id)
            return
        found = self._at_once.pop(request.request_id, None)
        at_once = found is not None and tokens > 0
        if tokens == 0 or at_once:
            self._take(request)
            self._decoding.add(request.request_id)
        else:
            self._waiting[request.request_id] = request
        if tokens == 0:
            self._kept.append((params["wp1"]["handoff"], params["wp1_tokens"]))
            self._orders.given_up.append((params["wp1"]["handoff"], params["remote_engine_id"]))
            return
        said = params["wp1"] if "blocks" in params["wp1"] else None
        cached, done = found or (params["wp1_tokens"] - tokens, said)
        self._kept.append((params["wp1"]["handoff"], cached))
        first = cached // self._block_tokens
        end = -(-params["wp1_tokens"] // self._block_tokens)
        load = Load(
            request.request_id,
            params["wp1"]["handoff"],
            params["remote_engine_id"],
            first,
            list(blocks[first:end]),
            done,
            at_once,
        )
        # After so many idle steps nothing is on its way in the GPU that could still write to these blocks; what was
        # called here and given up since the last orders may be.
        if at_once and self._idle > IDLE_STEPS and not self._orders.needed:
            self._to_workers(in_advance(load))
        self._orders.loads.append(load)

    def take_kept(self) -> list[tuple[str, int]]:
        """Handoffs since the last time, and how many tokens of each do not come from elsewhere."""
        kept, self._kept = self._kept, []
        return kept

    def orders(self, scheduled: Collection[str]) -> DecodeOrders:
        """What this step's workers are to do; `scheduled`: requests that the step computes tokens of."""
        at_rest = self._idle > IDLE_STEPS and not scheduled
        self._idle = 0 if scheduled or self._orders.loads or self._orders.given_up else self._idle + 1
        if self._waiting:
            if at_rest:
                self._foresee()  # nothing is listened for where that calls KV here
            self._listen()
            if at_rest:
                self._foresee()
        self._listened = False
        self._orders.needed += [self._ahead.pop(name) for name in list(self._ahead) if name in scheduled]
        orders, self._orders = self._orders, DecodeOrders()
        return orders

    def _foresee(self) -> None:
        """In a step that has nothing else to do: whose KV comes now, or as good as now."""
        waiting = {name: request.kv_transfer_params for name, request in self._waiting.items()}
        done = [name for name, params in waiting.items() if self._done_of(params) is not None]
        self._orders.soon = [waiting[name]["wp1"]["handoff"] for name in done]
        if len(waiting) > 1 or self._decoding or done:
            return
        [(name, params)] = waiting.items()
        handoff = params["wp1"]["handoff"]
        if name not in self._ahead and handoff in self._last and self._foreseeable(params):
            self._ahead[name] = handoff
            self._orders.ahead.append((name, handoff))

    def _hear(self) -> None:
        """Takes what prefill engines say."""
        for message in self._mailbox.waiting():
            if message["kind"] == "done":
                self._done[message["handoff"]] = message
            elif message["kind"] == "last":
                self._last[message["handoff"]] = None
        # Requests that were given up before their prompt was done leave theirs behind.
        for heard in (self._done, self._last):
            while len(heard) > REMEMBERED:
                del heard[next(iter(heard))]

    def arrived(self, requests: set[str]) -> None:
        """The KV of these requests is here, or will not come. Decoding begins with the prefill engine's token."""
        self._hear()
        for name in requests:
            if name not in self._waiting:
                continue
            self._take(self._waiting.pop(name))
            self._decoding.add(name)

    def _take(self, request: Any) -> None:
        """The request has its KV. Where it is preempted later, it computes that again: the source's blocks are free.

        Raises RuntimeError where its first token is not known: without it, it would go on from a wrong one.
        """
        params = request.kv_transfer_params
        params["do_remote_prefill"] = False
        self._last.pop(params["wp1"]["handoff"], None)
        self._place_token(request, self._done.pop(params["wp1"]["handoff"], None))

    def _place_token(self, request: Any, done: Message | None) -> None:
        """Puts the first token where the request was sent with a place for it, before it was known."""
        ours = request.kv_transfer_params["wp1"]
        if not ours.get("wants_token"):
            return
        if done is None:
            raise RuntimeError(f"the KV of handoff {ours['handoff']} is here and its first token is not known")
        token = done["token"]
        if request.prompt_token_ids[-1] == request._all_token_ids[-1] == token:
            return
        request.prompt_token_ids[-1] = token
        request._all_token_ids[-1] = token
        if request.block_hashes:
            # With prefix caching: the block with that place must not be found by others as what it is not.
            del request.block_hashes[(len(request._all_token_ids) - 1) // self._block_tokens :]
            request.update_block_hashes()

    def finished(self, request: Any) -> None:
        """A request has ended, and if its KV has not come yet, nobody waits for it any more."""
        self._decoding.discard(request.request_id)
        self._at_once.pop(request.request_id, None)
        handoff = self._ahead.pop(request.request_id, None)
        if handoff is not None:
            # vLLM gives its blocks to others, and they may still be written to.
            self._orders.needed.append(handoff)
            self._orders.given_up.append((handoff, request.kv_transfer_params["remote_engine_id"]))
        params = request.kv_transfer_params
        if not params or "wp1" not in params:
            return
        self._waiting.pop(request.request_id, None)
        self._hear()  # as the word of a prompt that was not waited for to the end would stay, or was called here before
        self._done.pop(params["wp1"]["handoff"], None)
        self._last.pop(params["wp1"]["handoff"], None)
        if handoff is None and _ours(request) is not None:
            self._orders.given_up.append((params["wp1"]["handoff"], params["remote_engine_id"]))


def _ours(request: Any) -> Any:
    params = request.kv_transfer_params
    return params if params and params.get("do_remote_prefill") and "wp1" in params else None
