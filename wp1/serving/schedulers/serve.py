"""Serves one request on an engine and fills in its record from the stream."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any

from wp1.core.errors import WP1Error
from wp1.core.records import ControlRecord, RequestRecord
from wp1.serving.backend import CLOSE_S, Chunk, EngineDiedError

WELL_ENDED = ("stop", "length", "repetition")


class TransferError(WP1Error):
    """A request's KV did not get to the decode engine."""


@asynccontextmanager
async def outcome(record: RequestRecord, timeout_s: float) -> AsyncIterator[None]:
    """Context whose body serves a request; records how that ended, and fails it after `timeout_s` seconds.

    Raises only CancelledError: other errors become the record's status, cause and error.
    """
    record.t_sent = time.monotonic()
    try:
        async with asyncio.timeout(timeout_s):
            yield
        if record.finish_reason in WELL_ENDED:
            record.status, record.phase = "ok", None
        else:
            record.status, record.cause = "error", "engine_error"
            record.error = f"the engine ended the request early: {record.finish_reason or 'no reason given'}"
    except TimeoutError:
        record.status, record.cause = "timeout", "timeout"
        record.error = f"not finished after {timeout_s + record.held_s:g} s (workload.timeout_s)"
    except asyncio.CancelledError:
        record.status, record.cause, record.error = "aborted", "interrupted", "the run was interrupted"
        raise
    except Exception as error:
        record.cause = (
            "engine_died"
            if isinstance(error, EngineDiedError)
            else "transfer"
            if isinstance(error, TransferError)
            else "engine_error"
        )
        record.status, record.error = "error", str(error) or type(error).__name__
    finally:
        record.t_end = time.monotonic()


def closing(stream: AsyncIterator[Chunk]) -> AbstractAsyncContextManager[AsyncIterator[Chunk]]:
    """Context that always closes the stream at its end, which aborts the request in the engine if it has not ended."""

    @asynccontextmanager
    async def closing_() -> AsyncIterator[AsyncIterator[Chunk]]:
        try:
            yield stream
        finally:
            close: Any = getattr(stream, "aclose", None)
            if close is not None:
                # The request's result is already known, and a hanging engine must not delay it.
                with suppress(TimeoutError):
                    async with asyncio.timeout(CLOSE_S):
                        await close()

    return closing_()


async def collect(stream: AsyncIterator[Chunk], record: RequestRecord, timeout_s: float) -> None:
    """Serves a whole request on one engine and records its outcome (see `outcome`)."""
    async with outcome(record, timeout_s):
        await stream_into(record, stream)


async def stream_into(record: RequestRecord, stream: AsyncIterator[Chunk]) -> None:
    """Reads an engine's answer into its record; to be called within `outcome`."""
    async with closing(stream):
        record.phase = "prefill"
        async for chunk in stream:
            record.phase = "decode"
            add_tokens(record, chunk)
            add_end(record, chunk)


def add_tokens(record: RequestRecord, chunk: Chunk) -> None:
    """Adds a chunk's tokens to the record; tokens of one chunk share its time."""
    record.t_tokens.extend([chunk.t] * len(chunk.token_ids))
    record.token_ids.extend(chunk.token_ids)
    record.output_tokens = len(record.token_ids)
    record.text += chunk.text
    if chunk.nll is not None:
        record.nll = chunk.nll
    if chunk.margins is not None and isinstance(record, ControlRecord):
        record.margins.extend(chunk.margins)


def add_end(record: RequestRecord, chunk: Chunk) -> None:
    """Adds the figures of the whole request, which come with an engine's last chunk."""
    if chunk.finish_reason is not None:
        record.finish_reason = chunk.finish_reason
        record.prompt_tokens = chunk.prompt_tokens
        record.cached_tokens = chunk.cached_tokens
    if chunk.times is not None:
        record.t_queued = chunk.times.queued
        record.t_scheduled = chunk.times.scheduled
        record.t_engine_first_token = chunk.times.first_token
        record.t_engine_last_token = chunk.times.last_token
        record.preemptions = chunk.times.preemptions
