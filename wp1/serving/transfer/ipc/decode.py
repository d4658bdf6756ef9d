"""The connector's half in the decode engine's scheduler process: which blocks to fetch, and for which request.

KV is fetched in one of two ways:

- In the background, while the engine steps and blocks become ready. vLLM allocates the request's blocks at once and
  schedules it when all KV is reported as arrived, up to two idle steps of a millisecond later.
- Within the step that computes the first token, once the prompt is done. This saves those milliseconds. It is used only
  if the copy is short and no other request is decoding, which would have to wait for it. A message to the workers
  starts the copy while the step is still being prepared.

If no other request would have to wait and the step needs nothing but the KV (first_token=decode), KV is reported to
vLLM as arrived while the prompt's last chunk is still being computed ("ahead"). vLLM's idle pauses and the preparation
of the step, which grows with the prompt, then overlap with that chunk, and the step waits for the KV before it
computes. This is off with prefix caching: other requests can use blocks as soon as vLLM believes that they have
arrived, even if their request is then aborted and they never do.
"""

from collections.abc import Callable, Collection
from typing import Any

from wp1.serving.transfer.ipc.mailbox import Mailbox, Message
from wp1.serving.transfer.ipc.receiver import REMEMBERED, DecodeOrders, Load, in_advance

# Idle steps after which an engine may block to wait for KV: up to this many steps may still be in flight on the GPU,
# and their results must not be delayed.
IDLE_STEPS = 3
# Length of one such wait.
IDLE_WAIT_S = 0.005


class DecodeScheduler:
    """Tracks each request whose KV comes from a prefill engine, in the process of the engine's scheduler."""

    def __init__(
        self,
        mailbox: Mailbox,
        block_tokens: int,
        at_once_tokens: int = 0,
        to_workers: Callable[[Message], None] = lambda _: None,
        foresees: bool = True,
    ) -> None:
        """at_once_tokens: largest number of tokens whose KV is fetched within a step.

        to_workers: sends a message to the receivers. foresees: whether a step may wait for the end of its prompt.
        """
        self._mailbox = mailbox
        self._to_workers = to_workers
        self._block_tokens = block_tokens
        self._at_once_tokens = at_once_tokens
        self._foresees = foresees
        self._waiting: dict[str, Any] = {}  # vllm.v1.request.Request by id, until its KV has arrived
        # By request, until allocated: tokens cached here, and the prefill engine's "done" message.
        self._at_once: dict[str, tuple[int, Message]] = {}
        self._decoding: set[str] = set()
        self._ahead: dict[str, str] = {}  # request: handoff, from when its KV is reported early until a step needs it
        self._sources: set[str] = set()  # engines that KV came from
        self._last: dict[str, None] = {}  # handoffs whose last chunk is being computed
        self._done: dict[str, Message] = {}  # handoff: the prefill engine's "done" message
        self._orders = DecodeOrders()
        self._kept: list[tuple[str, int]] = []  # rows of `wp1.serving.transfer.Kept`
        self._idle = 0  # idle steps in a row
        self._listened = False  # in this step

    def to_come(self, request: Any, computed: int) -> tuple[int | None, bool]:
        """Tokens beyond the first `computed` whose KV is fetched, and whether in the background.

        Tokens are None if that is not known yet: vLLM then asks again.
        """
        self._at_once.pop(request.request_id, None)
        params = _ours(request)
        if params is None:
            return 0, False
        self._sources.add(params["remote_engine_id"])
        tokens = max(0, params["wp1_tokens"] - computed)
        if tokens == 0:
            # The whole prompt is cached here, but its first output token still comes from the prefill engine.
            token_known = not params["wp1"].get("wants_token") or self._awaited(params) is not None
            return (0 if token_known else None), False
        foreseen = self._foreseeable(params) and self._done_of(params) is None
        if tokens > self._at_once_tokens or self._decoding or foreseen:
            return tokens, True
        done = self._awaited(params)
        if done is None:
            return None, False
        self._at_once[request.request_id] = (computed, done)
        self._place_token(request, done)
        # A step computes at least one token: if the prompt has no other left, its last one is computed again.
        return min(tokens, request.num_prompt_tokens - 1 - computed), False

    def _foreseeable(self, params: Any) -> bool:
        """Whether a step for this request may wait for the end of its prompt.

        All other requests wait with it, so there must be only one prefill engine: with two, another prompt could end
        much earlier.
        """
        asked_early = "blocks" not in params["wp1"] and not params["wp1"].get("wants_token")
        return asked_early and self._foresees and self._at_once_tokens > 0 and len(self._sources) == 1

    def _awaited(self, params: Any) -> Message | None:
        """Like `_done_of`, but an idle engine first waits a moment for the message."""
        if self._done_of(params) is None:
            self._listen()
        return self._done_of(params)

    def _done_of(self, params: Any) -> Message | None:
        """The prefill engine's "done" message for a prompt, or None if it has not come yet."""
        if "blocks" in params["wp1"]:
            return params["wp1"]
        self._hear()
        return self._done.get(params["wp1"]["handoff"])

    def _listen(self) -> None:
        """Waits a moment for a message, once a step, if the engine has nothing else to do.

        vLLM asks again every millisecond, and each time the whole engine steps; on a CPU that slows down the engine
        that computes the prompt. The message ends the wait at once. There is no wait if a prompt is already done whose
        KV has not arrived: a step must notice the arrival, and nothing may delay that step.
        """
        if self._idle <= IDLE_STEPS or self._listened or self._ahead:
            return
        if any(self._done_of(request.kv_transfer_params) is not None for request in self._waiting.values()):
            return
        self._listened = True
        self._mailbox.wait(IDLE_WAIT_S)

    def allocated(self, request: Any, blocks: list[int], tokens: int) -> None:
        """vLLM allocated these blocks to the request; the KV of its last `tokens` prompt tokens is to be fetched."""
        params = _ours(request)
        if request.request_id in self._waiting:
            return
        if params is None:
            self._decoding.add(request.request_id)
            return
        planned = self._at_once.pop(request.request_id, None)
        at_once = planned is not None and tokens > 0
        if tokens == 0 or at_once:
            self._take(request)
            self._decoding.add(request.request_id)
        else:
            self._waiting[request.request_id] = request
        if tokens == 0:
            self._kept.append((params["wp1"]["handoff"], params["wp1_tokens"]))
            self._orders.given_up.append((params["wp1"]["handoff"], params["remote_engine_id"]))
            return
        announced = params["wp1"] if "blocks" in params["wp1"] else None
        cached, done = planned or (params["wp1_tokens"] - tokens, announced)
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
        # After this many idle steps nothing in flight on the GPU can still write to these blocks. A copy whose KV was
        # reported early and whose request was aborted since the last orders can.
        if at_once and self._idle > IDLE_STEPS and not self._orders.needed:
            self._to_workers(in_advance(load))
        self._orders.loads.append(load)

    def take_kept(self) -> list[tuple[str, int]]:
        """Handoffs since the last call, each with the number of its tokens that are not fetched."""
        kept, self._kept = self._kept, []
        return kept

    def orders(self, scheduled: Collection[str]) -> DecodeOrders:
        """This step's orders to the workers. scheduled: requests for which the step computes tokens."""
        at_rest = self._idle > IDLE_STEPS and not scheduled
        self._idle = 0 if scheduled or self._orders.loads or self._orders.given_up else self._idle + 1
        if self._waiting:
            if at_rest:
                self._foresee()  # if this reports KV early, `_listen` does not wait
            self._listen()
            if at_rest:
                self._foresee()
        self._listened = False
        self._orders.needed += [self._ahead.pop(name) for name in list(self._ahead) if name in scheduled]
        orders, self._orders = self._orders, DecodeOrders()
        return orders

    def _foresee(self) -> None:
        """In an idle step: orders the workers to wait for KV of prompts that are done, or reports KV early."""
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
        """Reads the prefill engines' messages."""
        for message in self._mailbox.waiting():
            if message["kind"] == "done":
                self._done[message["handoff"]] = message
            elif message["kind"] == "last":
                self._last[message["handoff"]] = None
        # Requests that were aborted before their prompt was done leave their messages behind.
        for messages in (self._done, self._last):
            while len(messages) > REMEMBERED:
                del messages[next(iter(messages))]

    def arrived(self, requests: set[str]) -> None:
        """The KV of these requests has arrived or failed. Decoding begins with the prefill engine's token."""
        self._hear()
        for name in requests:
            if name not in self._waiting:
                continue
            self._take(self._waiting.pop(name))
            self._decoding.add(name)

    def _take(self, request: Any) -> None:
        """The request has its KV. If it is preempted later, it recomputes the KV: the prefill engine's blocks are free.

        Raises RuntimeError if its first token is not known: decoding would continue from a wrong token.
        """
        params = request.kv_transfer_params
        params["do_remote_prefill"] = False
        self._last.pop(params["wp1"]["handoff"], None)
        self._place_token(request, self._done.pop(params["wp1"]["handoff"], None))

    def _place_token(self, request: Any, done: Message | None) -> None:
        """Replaces the placeholder of a request that was sent before its first token was known."""
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
            # With prefix caching: the block's hash was computed with the placeholder, and must not match other prompts.
            del request.block_hashes[(len(request._all_token_ids) - 1) // self._block_tokens :]
            request.update_block_hashes()

    def finished(self, request: Any) -> None:
        """A request has ended; if its KV has not arrived, the handoff is given up."""
        self._decoding.discard(request.request_id)
        self._at_once.pop(request.request_id, None)
        handoff = self._ahead.pop(request.request_id, None)
        if handoff is not None:
            # vLLM reuses its blocks while the copy may still write to them, so the next step has to wait for its end.
            self._orders.needed.append(handoff)
            self._orders.given_up.append((handoff, request.kv_transfer_params["remote_engine_id"]))
        params = request.kv_transfer_params
        if not params or "wp1" not in params:
            return
        self._waiting.pop(request.request_id, None)
        # The "done" message of a prompt that was aborted or reported early may still be unread, and would be kept.
        self._hear()
        self._done.pop(params["wp1"]["handoff"], None)
        self._last.pop(params["wp1"]["handoff"], None)
        if handoff is None and _ours(request) is not None:
            self._orders.given_up.append((params["wp1"]["handoff"], params["remote_engine_id"]))


def _ours(request: Any) -> Any:
    params = request.kv_transfer_params
    return params if params and params.get("do_remote_prefill") and "wp1" in params else None
