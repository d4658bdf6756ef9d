"""One request on one engine, from stream to record."""

import asyncio
import time
from collections.abc import AsyncIterator

from wp1.records import RequestRecord
from wp1.serving.backend import Chunk, EngineDiedError


async def collect(stream: AsyncIterator[Chunk], record: RequestRecord, timeout_s: float) -> None:
    """Fills the record from the stream until it ends, fails or `timeout_s` seconds have passed since the send.

    Nothing is raised but CancelledError: a failure is what the record says. Closes the stream in every case, which
    aborts the request in the engine.
    """
    record.t_sent = time.monotonic()
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in stream:
                add(record, chunk)
        if record.finish_reason in ("stop", "length", "repetition"):
            record.status = "ok"
        else:
            record.status, record.cause = "error", "engine_error"
            record.error = f"the engine ended the request early: {record.finish_reason or 'no reason given'}"
    except TimeoutError:
        record.status, record.cause = "timeout", "timeout"
        record.error = f"not finished after {timeout_s:g} s (workload.timeout_s)"
    except asyncio.CancelledError:
        record.status, record.cause, record.error = "aborted", "interrupted", "the run was interrupted"
        raise
    except Exception as error:
        record.cause = "engine_died" if isinstance(error, EngineDiedError) else "engine_error"
        record.status, record.error = "error", str(error) or type(error).__name__
    finally:
        record.t_end = time.monotonic()
        close = getattr(stream, "aclose", None)
        if close is not None:
            await close()


def add(record: RequestRecord, chunk: Chunk) -> None:
    """One chunk into the record. Tokens that came in one chunk share its time."""
    record.t_tokens.extend([chunk.t] * len(chunk.token_ids))
    record.token_ids.extend(chunk.token_ids)
    record.output_tokens = len(record.token_ids)
    record.text += chunk.text
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
