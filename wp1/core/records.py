"""What a run writes down, a dataclass for a line of each of its files (`wp1.core.run_files`).

A field's type says what a reader makes of it: tables take their columns from these classes. Where the annotation does
not say enough, the field's metadata does: `bits`, of a whole number that is smaller than 64.

A record keeps raw timestamps on one monotonic clock (`time.monotonic`, seconds; vLLM's engine core reads the same
clock on the same machine). Latencies are derived from them later, in `wp1.analysis.base.metrics`, never stored.
"""

import re
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["ok", "error", "timeout", "aborted"]
# Why a request did not end well, for counting; `error` has the words.
Cause = Literal["engine_died", "engine_error", "timeout", "transfer", "interrupted"]
# How far a request had come: waiting for a place to prefill, prefill, prefilled and waiting for a place to decode, its
# KV on the way, decode.
Phase = Literal["queue", "prefill", "decode_queue", "handoff", "decode"]
Chat = list[dict[str, str]]


@dataclass(slots=True)
class Request:
    """One request to send. `prompt` is text, a chat (role and content a message), or token ids."""

    request_id: str
    arm: str
    cell: str
    repeat: int
    prompt: str | Chat | list[int]
    max_tokens: int
    seed: int
    label: str = ""  # what a person would call it: the question, or the kind of prompt
    temperature: float = 0.0
    top_p: float = 1.0
    ignore_eos: bool = False
    timeout_s: float = 600.0
    warmup: bool = False
    example: str = ""  # by which this answer is scored, in examples.jsonl
    stop: list[str] = field(default_factory=list)  # texts that end the answer
    nll_window: int | None = None  # tokens; the prompt's log-likelihood is wanted, summed over windows of so many
    margins: bool = False  # for every output token, how far apart the two best were is wanted (`ControlRecord`)


@dataclass(slots=True)
class RequestRecord:
    """One request as it went. Times in seconds on the monotonic clock; None where it did not get that far."""

    request_id: str
    arm: str
    cell: str
    repeat: int
    label: str
    warmup: bool
    seed: int
    status: Status
    error: str | None = None
    cause: Cause | None = None
    phase: Phase | None = None  # where a request that failed had come to
    # When it was due, when we handed it to the engine, and what the engine's scheduler says.
    t_intended: float = 0.0
    ramp: bool = False  # due while the rate still grew (workload.arrivals=ramp)
    t_sent: float | None = None
    # Seconds for which it was not sent, as too many others were in flight in an over-saturated open loop.
    held_s: float = 0.0
    t_queued: float | None = None
    t_scheduled: float | None = None
    t_engine_first_token: float | None = None
    t_engine_last_token: float | None = None
    # Disaggregated only, where the four above but the last are the prefill engine's: when the request went to the
    # decode engine, when that scheduled it with its KV there, and its first token in that engine.
    t_decode_sent: float | None = None
    t_decode_scheduled: float | None = None
    t_decode_first_token: float | None = None
    # When the client had each output token in hand; t_tokens[0] is the first.
    t_tokens: list[float] = field(default_factory=list)
    t_end: float | None = None
    prompt_tokens: int | None = None  # by the engine
    output_tokens: int = 0  # by the engine
    cached_tokens: int = 0  # prompt tokens served from the prefix cache
    preemptions: int = 0
    finish_reason: str | None = None
    text: str = ""
    token_ids: list[int] = field(default_factory=list, metadata={"bits": 32})
    # The route: which pool and engine did each phase; pools are described in run_metadata.json.
    pool: str | None = None
    prefill_engine: str | None = None
    decode_engine: str | None = None
    handoff_id: str | None = None
    example: str = ""  # in examples.jsonl
    nll_window: int | None = None  # tokens a window
    # Negative log-likelihood in nats of the prompt's tokens, summed over each window; the very first token has none.
    nll: list[float] = field(default_factory=list)


@dataclass(slots=True)
class ControlRecord(RequestRecord):
    """A measured request that was asked again (`wp1.runner.control`): part of no figure, and in a file of its own."""

    # Log-probability of the best token less that of the second best (nats), for each output token.
    margins: list[float] = field(default_factory=list)
    parted: bool = False  # asked because another arm had answered with other tokens, and not by its place in the cell


@dataclass(slots=True)
class Handoff:
    """One movement of one request's KV blocks from a prefill engine to a decode engine; times as in RequestRecord."""

    handoff_id: str  # unique in the run
    request_id: str
    arm: str
    cell: str
    repeat: int
    warmup: bool
    source: str
    target: str | None  # None where it failed before a decode engine was chosen
    transfer: str  # the configuration's transfer.name
    status: Literal["ok", "failed"] = "failed"
    error: str | None = None
    phase: Phase | None = None  # where one that failed had come to
    tokens: int = 0  # the prompt's, whose KV the decode engine needs
    tokens_kept: int | None = None  # the first of them, which need not move: `wp1.serving.transfer.Kept`
    blocks: int | None = None  # moved, by the connector
    bytes: int | None = None  # moved, by the connector
    bytes_expected: int | None = None  # blocks that hold the tokens not kept x bytes of a block
    block_bytes: int | None = None
    # Where the connector knows: seconds in which bytes moved, and that blocks which were ready waited for that, on the
    # slowest rank; runs of neighbours in which the blocks lay, on one.
    copy_s: float | None = None
    wait_s: float | None = None
    runs: int | None = None
    t_prefill_done: float | None = None
    t_decode_sent: float | None = None
    t_transfer_begin: float | None = None
    t_transfer_end: float | None = None
    t_decode_scheduled: float | None = None
    t_decode_first_token: float | None = None


@dataclass(slots=True)
class QueueLengths:
    """Requests in each place of a disaggregated scheduler at one moment."""

    t: float  # seconds, monotonic
    arm: str
    prefill_waiting: int  # for a place in the prefill pool
    prefilling: int
    decode_waiting: int  # prefilled, KV held in the prefill pool, no place in the decode pool yet
    transferring: int
    decoding: int


@dataclass(slots=True)
class EngineStats:
    """What an engine counted over the stretch of time that ends at `t`."""

    t: float  # seconds, monotonic
    arm: str
    engine: str
    kv_use: float = 0.0  # share of the KV cache's blocks that are in use, mean over steps
    kv_use_peak: float = 0.0
    running: int = 0  # requests, at most
    waiting: int = 0  # requests that have no place yet, at most
    preemptions: int = 0  # requests that lost their place and will be computed again
    steps: int = 0


@dataclass(slots=True)
class MemoryNote:
    """What one worker of an engine notes of its memory at one moment, raw (`wp1.serving.memory`); bytes."""

    t: float  # seconds, monotonic
    arm: str
    pool: str
    engine: str
    moment: Literal["start", "begin", "end"]  # the engine is up; before and after a repeat of a cell
    cell: str | None
    repeat: int | None
    note: dict[str, Any]


@dataclass(slots=True)
class LoopLag:
    """How late timers fired in the event loop that sends requests and takes tokens, 50 samples a second."""

    t: float  # seconds, monotonic, of the last
    arm: str
    cell: str
    repeat: int
    lags: list[float]  # seconds


@dataclass(slots=True)
class DeviceSample:
    """One look at a device while engines live; figures are null in a sample that only says why there are none."""

    t: float  # seconds, monotonic
    device: str  # "cuda:0", or "host"
    memory_bytes: int | None = None  # in use on the GPU by all processes; resident, of the engines' processes
    utilisation: float | None = None  # percent: of time with a kernel running; of one core, summed over processes
    power_w: float | None = None  # null on a host
    energy_j: float | None = None  # a counter that only grows; null on a host and on older cards
    note: str | None = None  # why there are no figures; null in all samples that have some


# Arm, cell and repeat: what is measured in one go, and measured again whole if it was cut short.
Unit = tuple[str, str, int]


@dataclass(frozen=True, slots=True)
class Done:
    """One repeat of a cell, all its requests sent and ended."""

    arm: str
    cell: str
    repeat: int
    requests: int  # measured
    seconds: float  # that they took
    warmup_s: float  # that the warm-up before them took; 0 where none was needed
    died: str | None = None  # of an engine that died meanwhile

    @property
    def unit(self) -> Unit:
        return (self.arm, self.cell, self.repeat)


@dataclass(frozen=True)
class Probe:
    """One rate that a search for goodput tried, or the end of the search, which has only `ended`."""

    arm: str
    prompt_len: int
    number: int
    rate: float | None = None  # requests/s
    cell: str | None = None
    planned: bool = False  # measured as a cell of the experiment, and not for the search
    repeats: int = 0  # done; fewer than asked for where the verdict was clear before
    attainment: float | None = None
    seconds: float = 0.0
    ended: str | None = None


@dataclass(frozen=True, slots=True)
class ExampleLine:
    """One example of a scored run in one of its cells: what its score needs, and not its text."""

    cell: str
    example: str
    task: str  # benchmark/task
    category: str | None
    metric: str
    answers: list[Any]
    all_classes: list[str] | None
    length: int | None
    language: str | None
    depth: float | None
    groups: list[str]  # that the report has rows for; older runs have difficulty and length_group instead
    label: str
    prompt_tokens: int
    tokens_before: int  # of the prompt before it was cut


@dataclass(slots=True)
class ScoreLine:
    """The score of an answer to a benchmark from outside wp1 (`wp1.analysis.quality.answers`)."""

    request_id: str
    score: float  # in 0..1
    odd: bool  # the task's rule failed on the answer


def new_record(request: Request, t_intended: float) -> RequestRecord:
    """A record of a request that has not ended; its status is "aborted" until it has."""
    kind = ControlRecord if request.margins else RequestRecord
    return kind(
        request_id=request.request_id,
        arm=request.arm,
        cell=request.cell,
        repeat=request.repeat,
        label=request.label,
        warmup=request.warmup,
        seed=request.seed,
        status="aborted",
        t_intended=t_intended,
        example=request.example,
        nll_window=request.nll_window,
    )


def common_name(request_id: str, alike: bool) -> str:
    """The part of a request's id that is the same in every arm; alike: repeats ask the same, and share it as well."""
    name = request_id.partition("/")[2]
    return re.sub(r"/r\d+/", "/", name, count=1) if alike else name


# What goes into files of its own beside the records.
Event = Handoff | QueueLengths | EngineStats
Row = RequestRecord | Event | LoopLag | MemoryNote
