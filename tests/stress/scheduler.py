"""vLLM's own scheduler with the decode half of transfer=ipc and no model: random prompts, aborts and failures.

    python -m tests.stress.scheduler --requests 6000

Two workers have simulated receivers. Steps overlap, as on a GPU (async scheduling), or do not. Some engines have prefix
caching, so that requests find blocks of others. The test checks, for the installed version of vLLM, that

- the KV that a step computes on is loaded with that step,
- each block it reads belongs to the request's own prompt, or is reported to vLLM as invalid,
- each request has its first token in place when it is scheduled,
- the connector knows which requests decode,
- no request fails because of another's load,
- in the end no blocks are held and no state is left.

The file is longer than 400 lines because all of it tests one scheduler.
"""

import argparse
import json
import logging
import os
import random
import sys
import tempfile
from collections import Counter, deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wp1.serving.transfer.ipc import decode as decode_module
from wp1.serving.transfer.ipc.mailbox import Mailbox, Message, Sender, pack
from wp1.serving.transfer.ipc.receiver import DecodeOrders, Ended, Load, in_advance

BLOCK_TOKENS = 16
MOST_TOKENS = 300
AT_ONCE_TOKENS = 192
BLOCK_BYTES = 2 * BLOCK_TOKENS * 16 * 2  # K and V, 16 numbers of two bytes each
RANKS = 2
# Probabilities of events in a step; the last two are for each rank.
LAST, ABORTED, ARRIVES, FAILS = 0.3, 0.03, 0.5, 0.05
GONE = 0.15  # share of waiting steps whose client disconnects meanwhile, so that the prompt is abandoned too
# Limits on requests in flight, most tokens they decode, and the probability that a prompt finishes in a step. The first
# load leaves the engine idle at times, the last never.
LOADS = (((1, 1, 1, 2), 6, 0.05), ((1, 1, 2, 6), 12, 0.15), ((8, 12), 80, 0.15))
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 64,
    "num_attention_heads": 4, "num_hidden_layers": 1, "num_key_value_heads": 1, "vocab_size": 32_000,
    "max_position_embeddings": 2048, "torch_dtype": "bfloat16",
}  # fmt: skip


@dataclass(slots=True)
class Asked:
    """A request given to the scheduler. expected: its prompt as a worker must see it."""

    request: Any
    tokens: int
    expected: list[int]
    done: Message | None  # message not sent yet
    last: bool = False  # whether the message about its last chunk was sent
    failed: bool = False  # whether one of its loads failed
    gone: bool = False  # whether its client disconnected while a step waited for its KV
    aborted: bool = False


class Played:
    """Simulates a worker's receiver, whose loads end at random, and its copier, which only has a fence."""

    def __init__(self, asked: dict[str, Asked], chance: random.Random, counts: Counter[str]) -> None:
        self._asked = asked
        self._chance = chance
        self._counts = counts
        self.loading: dict[str, Load] = {}
        self.over: set[str] = set()  # handoffs that have ended
        self.ended: deque[Ended] = deque()
        self.content: dict[int, list[int]] = {}  # by block: the tokens up to its end whose KV it holds; []: unknown

    def fence(self) -> str:
        return "the steps before"

    def obey(self, orders: DecodeOrders, after: Any) -> None:
        assert not orders.loads or after == self.fence(), "a load does not wait for the steps before"
        twice = [load for load in orders.loads if load.request in self.loading or load.handoff in self.over]
        assert not twice, "a load was requested twice, or for an abandoned handoff"
        given_up = {handoff for handoff, _ in orders.given_up}
        for load in list(self.loading.values()):
            if load.handoff in given_up:
                self._end(load, "given up")
        self.loading |= {load.request: load for load in orders.loads}
        self.content |= {block: [] for load in orders.loads for block in load.blocks}
        for load in list(self.loading.values()):
            arrives = self._asked[load.request].done is None and self._chance.random() < ARRIVES
            needed = load.handoff in orders.needed
            if load.at_once or arrives or needed:
                failed = self._asked[load.request].gone or self._chance.random() < FAILS
                kind = "at once" if load.at_once else "ahead" if needed else "beside"
                self._counts[f"failed {kind}"] += failed
                self._end(load, "played" if failed else None)

    def not_over(self, requests: list[tuple[str, str]]) -> set[str]:
        return {request for request, handoff in requests if handoff not in self.over}

    def wait(self, handoffs: list[str], seconds: float) -> None:
        for load in list(self.loading.values()):
            if load.handoff in handoffs and self._chance.random() < ARRIVES:
                self._counts["waited for"] += 1
                self._end(load, None)

    def _end(self, load: Load, error: str | None) -> None:
        del self.loading[load.request]
        self.over.add(load.handoff)
        asked = self._asked[load.request]
        asked.failed |= error == "played"
        for number, block in enumerate(load.blocks, start=load.first + 1):
            self.content[block] = asked.expected[: min(number * BLOCK_TOKENS, asked.tokens)] if error is None else []
        self.ended.append(Ended(load.request, error, load.blocks, load.at_once, (load.handoff, 0.0, 0.0, 0, error)))


class Decode:
    """vLLM's scheduler, and the requests given to it."""

    def __init__(self, config: Any, folder: Path, num_blocks: int, first_token: str, seed: int) -> None:
        import torch
        from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
        from vllm.utils.hashing import sha256
        from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
        from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
        from vllm.v1.structured_output import StructuredOutputManager

        spec = FullAttentionSpec(block_size=BLOCK_TOKENS, num_kv_heads=1, head_size=16, dtype=torch.bfloat16)
        config.cache_config.num_gpu_blocks = num_blocks
        cache = KVCacheConfig(num_blocks, [], [KVCacheGroupSpec(["layers.0"], spec)])
        self.scheduler = config.scheduler_config.get_scheduler_cls()(
            vllm_config=config,
            kv_cache_config=cache,
            structured_output_manager=StructuredOutputManager(config),
            log_stats=True,
            block_size=BLOCK_TOKENS,
            hash_block_size=BLOCK_TOKENS,
        )
        init_none_hash(sha256)
        self._hasher = get_request_block_hasher(BLOCK_TOKENS, sha256)
        connector = self.scheduler.connector
        self._workers = [type(connector)(config, KVConnectorRole.WORKER, cache) for _ in range(RANKS)]
        self._half = connector._decode
        assert self._half._at_once_tokens == AT_ONCE_TOKENS
        self._half._to_workers = self._mailed
        self._to_workers = connector._to_workers
        self._boxes = [Mailbox(folder, f"decode-0.{rank}") for rank in range(RANKS)]
        config.parallel_config.tensor_parallel_size = RANKS  # the connector reads it
        self._sender = Sender(folder)
        self._chance = random.Random(seed)
        self._wants_token = first_token == "prefill"
        self._in_flight, self._most_output, self._done = LOADS[seed % len(LOADS)]
        self._heads = [[self._chance.randrange(1, 1000) for _ in range(64)] for _ in range(3)]
        self._asked: dict[str, Asked] = {}
        self._here: Counter[str] = Counter()  # number of ranks on which a load has ended
        self._steps: deque[tuple[Any, Any]] = deque()  # launched, with outputs not processed yet
        self._free = self._blocks_free()
        self._caching = config.cache_config.enable_prefix_caching
        self._under_way = config.max_concurrent_batches  # most steps in flight
        self._broken: set[str] = set()  # requests that read invalid blocks, as was reported to vLLM
        self.counts: Counter[str] = Counter()
        self._played = [Played(self._asked, self._chance, self.counts) for _ in self._workers]
        for worker, played in zip(self._workers, self._played, strict=True):
            worker._receiver = worker._copier = played

    def _blocks_free(self) -> int:
        return self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks()

    def _mailed(self, message: Message) -> None:
        assert not any(step.total_num_scheduled_tokens for step, _ in self._steps), "a copy begins during a step"
        self.counts["in advance"] += 1
        self._to_workers(message)

    def run(self, requests: int) -> None:
        from vllm.v1.request import RequestStatus

        begun, idle = 0, 0
        while begun < requests or self._steps or self.scheduler.has_requests():
            living = [name for name in self._asked if not self._asked[name].request.is_finished()]
            if begun < requests and len(living) < self._chance.choice(self._in_flight):
                begun += 1
                self._ask(begun)
            for name in living:
                asked = self._asked[name]
                if asked.done is not None and not asked.last and self._chance.random() < LAST:
                    asked.last = True
                    self._sender.send("decode-0.scheduler", {"kind": "last", "handoff": name})
                if asked.done is not None and self._chance.random() < self._done:
                    self._sender.send("decode-0.scheduler", asked.done)
                    asked.done = None
            if living and self._chance.random() < ABORTED:
                self._abort(self._chance.choice(living))
            idle = 0 if self._step() else idle + 1
            assert idle < 10_000, f"no progress: {living}"
        half = self._half
        remaining: Any = (half._decoding, half._waiting, half._at_once, half._ahead)
        assert not any(remaining), remaining
        half._hear()
        remaining = [
            name for name in half._done.keys() | half._last.keys() if self._asked[name].request.num_output_tokens
        ]
        assert not remaining, f"messages about {remaining} are still kept"
        assert self._blocks_free() == self._free, "blocks are lost"
        # A prompt of one token is always computed here.
        missed = [asked for asked in self._asked.values() if asked.failed and len(asked.expected) > 1]
        wrong = [asked.request.request_id for asked in missed if asked.request.num_output_tokens]
        assert not wrong, f"they continued without their KV: {wrong}"
        failed = {name for name, asked in self._asked.items() if asked.request.status is RequestStatus.FINISHED_ERROR}
        assert all(self._asked[name].request.is_finished() for name in self._broken)
        wrong = [name for name in self._broken - failed if not self._asked[name].aborted]
        assert not wrong, f"they continued with invalid blocks: {wrong}"
        # With prefix caching, a request that found a block also fails if the block's load fails.
        wrong = [name for name in failed if not self._asked[name].failed and not self._caching]
        assert not wrong, f"they failed because of other requests' loads: {wrong}"
        assert not any(worker._ahead or worker._failed_ahead for worker in self._workers)
        self.counts["preempted"] = sum(asked.request.num_preemptions for asked in self._asked.values())

    def _abort(self, name: str) -> None:
        from vllm.v1.request import RequestStatus

        if self._caching and self._asked[name].failed:
            # If the request is aborted before the step's output is processed, vLLM itself lets others find a block
            # whose load failed within the step.
            return
        self.counts["aborted"] += 1
        self._asked[name].aborted = True
        self.scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)

    def _ask(self, number: int) -> None:
        from vllm import SamplingParams
        from vllm.v1.request import Request

        chance, name, token = self._chance, f"{number}-x", 5000 + number
        tokens = chance.randint(1, MOST_TOKENS)
        if chance.random() < 0.3:  # whole blocks only
            tokens = -(-tokens // BLOCK_TOKENS) * BLOCK_TOKENS
        prompt = [chance.randrange(1, 1000) for _ in range(tokens)]
        if chance.random() < 0.5:  # the beginning may be cached from another prompt
            prompt = (chance.choice(self._heads) + prompt)[:tokens]
        blocks = pack(list(range(1, 1 - (-tokens // BLOCK_TOKENS))))
        message = {"handoff": name, "epoch": 0, "blocks": blocks, "until": 1e12, "token": token}
        kind = chance.choice(("early", "early", "early", "late", "plain"))
        of_kind = {"early": {"handoff": name, "wants_token": self._wants_token}, "late": message}
        params = {"do_remote_prefill": True, "remote_engine_id": "prefill-0", "wp1_tokens": tokens}
        extra = {"kv_transfer_params": params | {"wp1": of_kind[kind]}} if kind in of_kind else None
        first_token = [token] if self._wants_token and kind != "plain" else []
        request = Request(
            request_id=name,
            prompt_token_ids=prompt + ([0] * len(first_token) if kind == "early" else first_token),
            sampling_params=SamplingParams(
                max_tokens=chance.randint(1, self._most_output), ignore_eos=True, extra_args=extra
            ),
            pooling_params=None,
            block_hasher=self._hasher,
        )
        self._asked[name] = Asked(
            request, tokens, prompt + first_token, {"kind": "done"} | message if kind == "early" else None
        )
        self.scheduler.add_request(request)
        self.counts[kind] += 1

    def _step(self) -> bool:
        """Steps as EngineCore.step_with_batch_queue does. Returns whether something was computed."""
        scheduled = 0
        if self.scheduler.has_requests():
            step = self.scheduler.schedule()
            scheduled = step.total_num_scheduled_tokens
            self._look_at(step)
            blocks_of = self.scheduler.kv_cache_manager.get_block_ids
            self._blocks = {name: blocks_of(name)[0] for name in step.num_scheduled_tokens}
            self._steps.appendleft((step, self._computed(step)))
            if len(self._steps) < self._under_way and (scheduled or self.scheduler.has_requests()):
                return scheduled > 0
        if self._steps:
            step, output = self._steps.pop()
            # vLLM does this too before it processes an output.
            for name in step.num_scheduled_tokens:
                if self._asked[name].gone and not self._asked[name].request.is_finished():
                    self._abort(name)
            self.scheduler.update_from_output(step, output)
        half, living = self._half, set(self.scheduler.requests)
        assert living >= half._decoding | set(half._waiting), "the connector does not know that a request has ended"
        assert half._decoding >= {request.request_id for request in self.scheduler.running}, (
            "the connector misses a request that decodes"
        )
        return scheduled > 0

    def _look_at(self, step: Any) -> None:
        fresh = {one.req_id: one for one in step.scheduled_new_reqs}
        for name, one in fresh.items():
            assert list(one.prompt_token_ids) == self._asked[name].expected, f"the prompt of {name} is wrong"
        loads = step.kv_connector_metadata.decode.loads
        for mails in zip(*(list(box.waiting()) for box in self._boxes), strict=True):
            announced = [json.loads(json.dumps(in_advance(load))) for load in loads if load.at_once]
            assert all(mail in announced for mail in mails), "a copy begins that the step did not request"
        for load in loads:
            if not load.at_once:
                continue
            self.counts["at once"] += 1
            asked, one = self._asked[load.request], fresh[load.request]
            assert {request.request_id for request in self.scheduler.running} <= set(fresh), "others wait for its copy"
            assert step.num_scheduled_tokens[load.request] == len(asked.expected) - one.num_computed_tokens == 1
            assert load.blocks == one.block_ids[0][load.first : -(-asked.tokens // BLOCK_TOKENS)]
            assert getattr(step, "has_sync_kv_loads", True), "vLLM would load after it has computed"

    def _computed(self, step: Any) -> Any:
        """The workers' output: a token for each request whose prompt is complete, and the loads that have ended."""
        from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput

        here, broken = set(), set()
        orders = step.kv_connector_metadata.decode
        self.counts["ahead"] += len(orders.ahead)
        for asked in self._asked.values():
            if asked.request.request_id in orders.needed and asked.done is not None:
                asked.gone = self._chance.random() < GONE
                self.counts["gone"] += asked.gone
                if not asked.gone:
                    self._sender.send("decode-0.scheduler", asked.done)  # the step waits for this
                asked.done = None
        reads: dict[str, list[int]] = {}
        for worker, played in zip(self._workers, self._played, strict=True):
            worker.bind_connector_metadata(step.kv_connector_metadata)
            before = getattr(step, "has_sync_kv_loads", True)  # as vLLM does
            if before:
                worker.start_load_kv(None)
            assert not played.loading.keys() & step.num_scheduled_tokens.keys(), (
                "a step computes on KV that is not loaded"
            )
            written = {block: load.request for load in played.loading.values() for block in load.blocks}
            for request in self.scheduler.running:
                [blocks] = self.scheduler.kv_cache_manager.get_block_ids(request.request_id)
                assert not written.keys() & set(blocks), "a load writes to another request's blocks"
            for name, blocks in self._unknown(step, played).items():
                reads.setdefault(name, []).extend(blocks)
            if not before:
                worker.start_load_kv(None)
            self._here.update(worker.get_finished(step.finished_req_ids)[1] or ())
            broken |= worker.get_block_ids_with_load_errors()
        for name in [name for name, ranks in self._here.items() if ranks == RANKS]:
            here.add(name)
            del self._here[name]
        for name, blocks in reads.items():
            known = name in self._broken or set(blocks) <= broken
            assert known, f"{name} is computed on blocks {blocks}, which do not hold its prompt's KV"
            self._broken.add(name)
        names = list(step.num_scheduled_tokens)
        return ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: at for at, name in enumerate(names)},
            sampled_token_ids=[[] if self._asked[name].request.is_prefill_chunk else [7] for name in names],
            kv_connector_output=KVConnectorOutput(finished_recving=here or None, invalid_block_ids=broken),
        )

    def _unknown(self, step: Any, played: Played) -> dict[str, list[int]]:
        """For each request of the step, the blocks it reads on this rank that do not hold its KV.

        Also records what the step writes. A request that reads such a block writes invalid KV.
        """
        cached = step.scheduled_cached_reqs
        begins = {one.req_id: one.num_computed_tokens for one in step.scheduled_new_reqs}
        begins |= dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        wrong = {}
        for name, count in step.num_scheduled_tokens.items():
            tokens, begin = self._asked[name].expected + [7] * self._most_output, begins[name]
            blocks = self._blocks[name]
            ends = [(block, min(n * BLOCK_TOKENS, begin)) for n, block in enumerate(blocks, start=1)]
            unknown = [
                block
                for n, (block, end) in enumerate(ends)
                if n * BLOCK_TOKENS < begin and played.content.get(block, [])[:end] != tokens[:end]
            ]
            if unknown:
                wrong[name] = unknown
            for n in range(begin // BLOCK_TOKENS, -(-(begin + count) // BLOCK_TOKENS)):
                played.content[blocks[n]] = [] if unknown else tokens[: min((n + 1) * BLOCK_TOKENS, begin + count)]
        return wrong


def engine_config(folder: Path) -> Any:
    """vLLM's configuration of a decode engine. Its model is only a config.json."""
    from wp1.serving.vllm_arguments import set_environment

    set_environment()
    from vllm.config import KVTransferConfig
    from vllm.engine.arg_utils import AsyncEngineArgs

    logging.disable(logging.ERROR)  # vLLM logs each simulated failure
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    arguments = AsyncEngineArgs(
        model=str(folder / "model"), skip_tokenizer_init=True, load_format="dummy", max_model_len=2048,
        block_size=BLOCK_TOKENS, enable_prefix_caching=True, max_num_seqs=16, disable_hybrid_kv_cache_manager=True,
    )  # fmt: skip
    arguments.kv_transfer_config = KVTransferConfig(
        kv_connector="IpcConnector",
        kv_connector_module_path="wp1.serving.transfer.ipc.connector",
        kv_role="kv_consumer",
        kv_load_failure_policy="fail",
        kv_connector_extra_config={"engine": "decode-0", "at_once_bytes": AT_ONCE_TOKENS // BLOCK_TOKENS * BLOCK_BYTES},
    )
    config = arguments.create_engine_config()
    config.cache_config.block_size = BLOCK_TOKENS
    return config


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=6000, help="in all, divided equally among 18 engines")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    decode_module.IDLE_WAIT_S = 0.0002  # no engine computes in the meantime
    with tempfile.TemporaryDirectory(prefix="kv-") as folder:
        os.environ["TMPDIR"] = folder
        config = engine_config(Path(folder))
        counts: Counter[str] = Counter()
        for number, blocks in enumerate((30, 60, 400)):
            for first_token in ("prefill", "decode"):
                for caching, overlap in ((False, False), (False, True), (True, True)):
                    config.cache_config.enable_prefix_caching = caching
                    config.scheduler_config.async_scheduling = overlap
                    decode = Decode(config, Path(folder) / "kv", blocks, first_token, args.seed + number)
                    decode.run(args.requests // 18)
                    assert not (caching and decode.counts["ahead"]), "other requests may find KV that is not loaded"
                    counts += decode.counts
        print(json.dumps(dict(counts), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
