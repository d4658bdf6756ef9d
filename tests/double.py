"""A serving backend for unit tests of everything around an engine. It has no model: its tokens count up from the seed.

No configuration reaches it: `wp1.schema` refuses targets outside wp1, and tests put it in VLLMBackend's place.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any, Self

from wp1.records import Request
from wp1.serving.backend import Chunk, EngineDiedError, EngineInfo, EngineTimes


class DoubleBackend:
    """Streams `max_tokens` tokens, `gap_s` apart; dies at the request number `dies_at`, if that is set."""

    gap_s = 0.0005
    dies_at: int | None = None
    cached_tokens = 0
    drift = False  # other tokens each time, in spite of the seed
    started: list[str]
    stopped: list[str]

    def __init__(self, *, name: str, **settings: Any) -> None:
        self.name = name
        self.settings = settings
        self.served = 0
        self.aborted: list[str] = []

    def check(self) -> None:
        pass

    async def __aenter__(self) -> Self:
        type(self).started.append(self.name)
        return self

    async def __aexit__(self, *_: object) -> None:
        type(self).stopped.append(self.name)

    async def generate(self, request: Request) -> AsyncIterator[Chunk]:
        self.served += 1
        if self.dies_at is not None and self.served >= self.dies_at:
            raise EngineDiedError(f"engine {self.name} died: killed by the test")
        queued = time.monotonic()
        first = request.seed % 1000 + (self.served if self.drift else 0)
        finished = False
        try:
            for n in range(request.max_tokens):
                await asyncio.sleep(self.gap_s)
                chunk = Chunk(time.monotonic(), [first + n], f"{first + n} ")
                if n == request.max_tokens - 1:
                    chunk.finish_reason, chunk.prompt_tokens = "length", len(request.prompt)
                    chunk.cached_tokens = self.cached_tokens
                    chunk.times = EngineTimes(queued, queued, queued + self.gap_s, chunk.t)
                yield chunk
            finished = True
        finally:
            if not finished:
                self.aborted.append(request.request_id)

    async def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)

    def info(self) -> EngineInfo:
        settings = {"dtype": "none", "kv_blocks": 0, "block_size": 0, "enforce_eager": True, "rope": {}}
        return EngineInfo(self.name, ["double"], 0.0, settings)
