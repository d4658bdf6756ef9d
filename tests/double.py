"""Doubles for unit tests: a serving backend, and the last step of a plot.

The backend stands in for an engine. It has no model: its tokens count up from the seed. No configuration of wp1's own
names it. Tests put it in VLLMBackend's place.
"""

import asyncio
import base64
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from wp1.analysis.base import style
from wp1.core.records import Request
from wp1.serving.backend import Chunk, EngineDiedError, EngineInfo, EngineTimes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Overrides for a model that is created instantly. The double does not use it.
TINY = (
    "model=llama31_8b_shape",
    "model.max_len=4096",
    "model.architecture.hidden_size=64",
    "model.architecture.num_hidden_layers=1",
    "workload.output_len=4",
    "workload.max_warmup=1",
)


class DoubleBackend:
    """Streams `max_tokens` tokens, `gap_s` seconds apart. Dies at request number `dies_at`, if that is set."""

    gap_s = 0.0005
    dies_at: int | None = None
    cached_tokens = 0
    drift = False  # whether equal seeds give different tokens
    margin = 2.0  # nats between the two best tokens, reported if a request asks for it
    started: list[str]
    stopped: list[str]
    noted: list[tuple[str, str]]  # engine and moment of each memory note, and "served" for each request
    engines: dict[str, "DoubleBackend"]
    kv_lost = False  # whether KV never arrives
    kept_tokens: int | None = None  # tokens of each fetched prompt found in the prefix cache; None: no prefix cache
    kv_blocks = 1000
    block_tokens = 16
    max_num_seqs = 64

    def __init__(self, *, name: str, **settings: Any) -> None:
        self.name = name
        self.settings = settings
        self.served = 0
        self.aborted: list[str] = []
        self.held: dict[str, int] = {}  # tokens of each request whose KV this engine holds
        self.peers = type(self).engines
        self.peers[name] = self
        self.alive = True
        self.death: str | None = None
        self.forgotten: list[str] = []

    def check(self) -> None:
        pass

    async def __aenter__(self) -> Self:
        type(self).started.append(self.name)
        return self

    async def __aexit__(self, *_: object) -> None:
        type(self).stopped.append(self.name)

    def kill(self) -> None:
        """Acts as kill -9 of the engine's processes: its requests fail and its KV is lost."""
        self.alive = False
        self.death = f"engine {self.name} died: killed by the test"
        self.held.clear()

    async def generate(
        self, request: Request, kv_transfer_params: dict[str, Any] | None = None
    ) -> AsyncIterator[Chunk]:
        """Streams a request. With `kv_transfer_params`, as NIXL's, it holds or fetches a prompt's KV; no bytes move."""
        params = kv_transfer_params or {}
        self.served += 1
        type(self).noted.append((self.name, "served"))
        if not self.alive or (self.dies_at is not None and self.served >= self.dies_at):
            self.kill()
            raise EngineDiedError(f"engine {self.name} died: killed by the test")
        queued = time.monotonic()
        first = request.seed % 1000 + (self.served if self.drift else 0)
        finished = False
        self.held[request.request_id] = len(request.prompt)
        try:
            if params.get("do_remote_prefill"):
                await self._fetch(request, params)
                first += len(request.prompt) - params["wp1_tokens"]
            scheduled = time.monotonic()
            for n in range(request.max_tokens):
                if not self.alive:
                    raise EngineDiedError(f"engine {self.name} died: killed by the test")
                await asyncio.sleep(self.gap_s)
                chunk = Chunk(time.monotonic(), [first + n], f"{first + n} ")
                if request.margins:
                    chunk.margins = [self.margin]
                if n == request.max_tokens - 1:
                    chunk.finish_reason, chunk.prompt_tokens = "length", len(request.prompt)
                    chunk.cached_tokens = self.cached_tokens
                    chunk.times = EngineTimes(queued, scheduled, min(scheduled + self.gap_s, chunk.t), chunk.t)
                    if params.get("do_remote_decode"):
                        chunk.kv_transfer_params = {
                            "do_remote_prefill": True,
                            "remote_engine_id": self.name,
                            "remote_request_id": request.request_id,
                        }
                yield chunk
            finished = True
        finally:
            if not finished:
                self.aborted.append(request.request_id)
            if not (finished and params.get("do_remote_decode")):
                self.held.pop(request.request_id, None)

    async def _fetch(self, request: Request, params: dict[str, Any]) -> None:
        source = self.peers[params["remote_engine_id"]]
        begin = time.monotonic()
        if self.kept_tokens is not None and self.kept_tokens >= params["wp1_tokens"]:
            # Nothing is fetched, so only wp1 can tell the sending side.
            self.settings["on_kv_stats"]({"wp1_kept": [(f"{request.request_id}-0123abcd", params["wp1_tokens"])]})
            return
        while self.kv_lost:
            await asyncio.sleep(0.001)
        await asyncio.sleep(self.gap_s)
        kept = self.kept_tokens or 0
        blocks = -(-source.held.pop(request.request_id, 0) // self.block_tokens) - kept // self.block_tokens
        size = blocks * self.block_tokens * (self.settings["model"].kv_bytes_per_token or 0)
        row = (f"{request.request_id}-0123abcd", begin, time.monotonic(), size, None)
        stats: dict[str, list[Any]] = {"wp1_transfers": [row] if size else []}
        if self.kept_tokens is not None:
            stats["wp1_kept"] = [(row[0], kept)]
        self.settings["on_kv_stats"](stats)

    async def meet(self, peers: list[str]) -> None:
        self.met = peers

    async def forget_peer(self, peer: str) -> None:
        self.forgotten.append(peer)

    async def let_go(self, request: str) -> None:
        self.held.pop(request, None)

    async def kv_free(self) -> bool:
        return not self.held

    async def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)

    async def memory(self, moment: str) -> list[dict[str, Any]]:
        """A worker's memory notes on a host, with made-up round figures: nothing is measured."""
        type(self).noted.append((self.name, moment))
        mib = 1 << 20
        pool = self.kv_blocks * self.block_tokens * (self.settings["model"].kv_bytes_per_token or 0)
        if moment == "start":
            taken = {"imported": 500, "device": 505, "weights": 805, "profiled": 806, "kv_cache": 808, "ready": 810}
            stages = [
                {"stage": name, "anonymous": size * mib + (pool if name in ("kv_cache", "ready") else 0), "kv": pool}
                for name, size in taken.items()
            ]
            return [{"rank": 0, "stages": stages, "kv_pool": pool, "vllm": {}}]
        return [
            {
                "rank": 0, "used": 1010 * mib + pool, "peak": 1042 * mib + pool, "kept": 0, "files": 200 * mib,
                "shared": 0, "kv": pool, "kv_shared": False, "core_process": 400 * mib, "limit": 16 << 30,
                "steps": {"prefill": 1, "decode": 3}, "step_peaks": {"prefill": 30 * mib, "decode": mib},
                "blocks_a_request": 3, "blocks_at_once": 3,
            }
        ]  # fmt: skip

    def info(self) -> EngineInfo:
        settings = {
            "dtype": "none",
            "kv_blocks": self.kv_blocks,
            "block_size": self.block_tokens,
            "prefix_caching": self.kept_tokens is not None,
            "max_num_seqs": self.max_num_seqs,
            "max_num_batched_tokens": 2048,
            "enforce_eager": True,
            "rope": {},
        }
        return EngineInfo(self.name, ["double"], 0.0, settings)


def fresh() -> type[DoubleBackend]:
    """A new class for each test, because the class records what its engines do."""
    return type("Fresh", (DoubleBackend,), {"started": [], "stopped": [], "noted": [], "engines": {}})


PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)


def unpainted(figure: "Figure", path: Path) -> None:
    """Replaces `wp1.analysis.base.style.save`: does everything but lay out and render the plot."""
    import matplotlib.pyplot as plt

    style.thousands(figure)
    path.write_bytes(PIXEL)
    plt.close(figure)
