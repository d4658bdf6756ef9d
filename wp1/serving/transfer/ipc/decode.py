"""The decode engine's half of the connector beside its scheduler: which blocks are to be taken over, and for whom."""

from typing import Any

from wp1.serving.transfer.ipc.mailbox import Mailbox
from wp1.serving.transfer.ipc.receiver import REMEMBERED, DecodeOrders, Load

# Steps without work after which an engine that waits for KV does so in peace, and for how long at a time. As many may
# be on their way in the GPU, whose outcome must not wait.
IDLE_STEPS = 3
IDLE_WAIT_S = 0.005


class DecodeScheduler:
    """Follows each request whose KV comes from elsewhere, in the process of the engine's scheduler."""

    def __init__(self, mailbox: Mailbox, block_tokens: int) -> None:
        self._mailbox = mailbox
        self._block_tokens = block_tokens
        self._waiting: dict[str, Any] = {}  # vllm.v1.request.Request by id, until its KV is here
        self._tokens: dict[str, int] = {}  # first tokens by handoff, as the prefill engine says
        self._orders = DecodeOrders()
        self._idle = 0

    def to_come(self, request: Any, computed: int) -> int | None:
        """Tokens beyond the first `computed` whose KV comes from elsewhere; None: not known yet, ask again."""
        params = _ours(request)
        if params is None:
            return 0
        tokens = max(0, params["wp1_tokens"] - computed)
        if tokens == 0 and params["wp1"].get("wants_token"):
            # All of it is cached here, and the token after it comes from the prefill engine all the same.
            self._hear()
            if params["wp1"]["handoff"] not in self._tokens:
                return None
        return tokens

    def allocated(self, request: Any, blocks: list[int], tokens: int) -> None:
        """vLLM gave the request these blocks, in which the KV of the last `tokens` tokens to come goes."""
        params = _ours(request)
        if params is None or request.request_id in self._waiting:
            return
        if tokens == 0:
            self._take(request)
            self._orders.given_up.append((params["wp1"]["handoff"], params["remote_engine_id"]))
            return
        first = (params["wp1_tokens"] - tokens) // self._block_tokens
        end = -(-params["wp1_tokens"] // self._block_tokens)
        self._waiting[request.request_id] = request
        self._orders.loads.append(
            Load(
                request.request_id,
                params["wp1"]["handoff"],
                params["remote_engine_id"],
                first,
                list(blocks[first:end]),
                params["wp1"] if "blocks" in params["wp1"] else None,
            )
        )

    def orders(self, scheduled: int) -> DecodeOrders:
        """What this step's workers are to do; `scheduled`: tokens that the step computes."""
        self._idle = 0 if scheduled or self._orders.loads or self._orders.given_up else self._idle + 1
        if self._idle > IDLE_STEPS and self._waiting and not self._hear():
            # vLLM asks again every millisecond, and each time the whole engine steps; on a CPU that is at the cost of
            # the engine that computes the prompt. The word that we wait for ends this at once.
            self._mailbox.wait(IDLE_WAIT_S)
        orders, self._orders = self._orders, DecodeOrders()
        return orders

    def _hear(self) -> bool:
        """Takes what prefill engines say; whether one of the prompts that are waited for is done."""
        for message in self._mailbox.waiting():
            if message["kind"] == "done":
                self._tokens[message["handoff"]] = message["token"]
        # Requests that were given up before their prompt was done leave theirs behind.
        while len(self._tokens) > REMEMBERED:
            del self._tokens[next(iter(self._tokens))]
        return any(request.kv_transfer_params["wp1"]["handoff"] in self._tokens for request in self._waiting.values())

    def arrived(self, requests: set[str]) -> None:
        """The KV of these requests is here, or will not come. Decoding begins with the prefill engine's token."""
        self._hear()
        for name in requests:
            if name not in self._waiting:
                continue
            self._take(self._waiting.pop(name))

    def _take(self, request: Any) -> None:
        """The request has its KV. Where it is preempted later, it computes that again: the source's blocks are free.

        Raises RuntimeError where its first token is not known: without it, it would go on from a wrong one.
        """
        params = request.kv_transfer_params
        params["do_remote_prefill"] = False
        token = self._tokens.pop(params["wp1"]["handoff"], None)
        if not params["wp1"].get("wants_token"):
            return
        if token is None:
            raise RuntimeError(f"the KV of handoff {params['wp1']['handoff']} is here and its first token is not known")
        # The request was sent with a place for it, before it was known.
        request.prompt_token_ids[-1] = token
        request._all_token_ids[-1] = token
        if request.block_hashes:
            # With prefix caching: the block with that place must not be found by others as what it is not.
            del request.block_hashes[(len(request._all_token_ids) - 1) // self._block_tokens :]
            request.update_block_hashes()

    def finished(self, request: Any) -> None:
        """A request has ended, and if its KV has not come yet, nobody waits for it any more."""
        params = _ours(request)
        if params is None:
            return
        self._waiting.pop(request.request_id, None)
        self._tokens.pop(params["wp1"]["handoff"], None)
        self._orders.given_up.append((params["wp1"]["handoff"], params["remote_engine_id"]))


def _ours(request: Any) -> Any:
    params = request.kv_transfer_params
    return params if params and params.get("do_remote_prefill") and "wp1" in params else None
