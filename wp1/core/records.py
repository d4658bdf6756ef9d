"""The rows of a run's files, one dataclass per kind of line (`wp1.core.run_files`).

Tables derive their columns from the field types. If an annotation is not specific enough, the field's metadata adds to
it: `bits` is the size of an integer narrower than 64 bits.

A record keeps raw timestamps on one monotonic clock (`time.monotonic`, seconds; vLLM's engine core reads the same
clock on the same machine). Latencies are derived from them later, in `wp1.analysis.base.aggregates`, never stored.
"""

import re
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

Status = Literal["ok", "error", "timeout", "aborted"]
# The kind of failure of a request, for counting; `error` has the message.
Cause = Literal["engine_died", "engine_error", "timeout", "transfer", "interrupted"]
# How far a request got: waiting to be prefilled, prefill, prefilled and waiting to be decoded, KV in transfer, decode.
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
    label: str = ""  # for people: the question, or the kind of prompt
    temperature: float = 0.0
    top_p: float = 1.0
    ignore_eos: bool = False
    timeout_s: float = 600.0
    warmup: bool = False
    example: str = ""  # the example in examples.jsonl that the answer is scored with
    stop: list[str] = field(default_factory=list)  # texts that end the answer
    nll_window: int | None = None  # return the prompt's log-likelihood, summed over windows of this many tokens
    margins: bool = False  # return the margin between the two best candidates of every output token (`ControlRecord`)


@dataclass(slots=True)
class RequestRecord:
    """The course of one request. Times in seconds on the monotonic clock; None if it did not get that far."""

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
    phase: Phase | None = None  # the phase in which it failed
    # When it was due, when we sent it to the engine, and the times that the engine's scheduler reports.
    t_intended: float = 0.0
    ramp: bool = False  # due while the rate was still increasing (workload.arrivals=ramp)
    t_sent: float | None = None
    # Seconds for which it was held back because too many requests were in flight in an over-saturated open loop.
    held_s: float = 0.0
    t_queued: float | None = None
    t_scheduled: float | None = None
    t_engine_first_token: float | None = None
    t_engine_last_token: float | None = None
    # Disaggregated only: when the request was sent to the decode engine, when that engine scheduled it with its KV in
    # place, and its first token there. Of the four times above, all but the last are then the prefill engine's.
    t_decode_sent: float | None = None
    t_decode_scheduled: float | None = None
    t_decode_first_token: float | None = None
    # When the client received each output token; t_tokens[0] is the first.
    t_tokens: list[float] = field(default_factory=list)
    t_end: float | None = None
    prompt_tokens: int | None = None  # by the engine
    output_tokens: int = 0  # by the engine
    cached_tokens: int = 0  # prompt tokens served from the prefix cache
    preemptions: int = 0
    finish_reason: str | None = None
    text: str = ""
    token_ids: list[int] = field(default_factory=list, metadata={"bits": 32})
    # The pool and the engine of each phase; pools are described in run_metadata.json.
    pool: str | None = None
    prefill_engine: str | None = None
    decode_engine: str | None = None
    handoff_id: str | None = None
    example: str = ""  # in examples.jsonl
    nll_window: int | None = None  # tokens per window
    # Negative log-likelihood (nats) of the prompt's tokens, summed over each window; the first token has none.
    nll: list[float] = field(default_factory=list)


@dataclass(slots=True)
class ControlRecord(RequestRecord):
    """A measured request that was sent again (`wp1.runner.control`): not in any figure, and in a separate file."""

    # For each output token, log-probability of the best candidate minus that of the second best (nats).
    margins: list[float] = field(default_factory=list)
    parted: bool = False  # chosen because its tokens differed from another arm's or repeat's, not by its position


@dataclass(slots=True)
class Handoff:
    """One transfer of a request's KV blocks from a prefill engine to a decode engine; times as in RequestRecord."""

    handoff_id: str  # unique in the run
    request_id: str
    arm: str
    cell: str
    repeat: int
    warmup: bool
    source: str
    target: str | None  # None if it failed before a decode engine was chosen
    transfer: str  # the configuration's transfer.name
    status: Literal["ok", "failed"] = "failed"
    error: str | None = None
    phase: Phase | None = None  # the phase in which it failed
    tokens: int = 0  # prompt tokens whose KV the decode engine needs
    tokens_kept: int | None = None  # leading tokens that need not be moved: `wp1.serving.transfer.Kept`
    blocks: int | None = None  # moved, as the connector reports
    bytes: int | None = None  # moved, as the connector reports
    bytes_expected: int | None = None  # blocks of the tokens that are not kept x bytes of a block
    block_bytes: int | None = None
    # If the connector reports them: seconds of copying and seconds that ready blocks waited for it, both on the slowest
    # rank; and the number of contiguous runs of blocks, on one rank.
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
    """The number of requests in each phase of a disaggregated scheduler at one moment."""

    t: float  # seconds, monotonic
    arm: str
    prefill_waiting: int  # for a slot in the prefill pool
    prefilling: int
    decode_waiting: int  # prefilled, KV held in the prefill pool, waiting for a slot in the decode pool
    transferring: int
    decoding: int


@dataclass(slots=True)
class EngineStats:
    """An engine's statistics over the interval that ends at `t`."""

    t: float  # seconds, monotonic
    arm: str
    engine: str
    kv_use: float = 0.0  # share of the KV cache's blocks in use, mean over steps
    kv_use_peak: float = 0.0
    running: int = 0  # requests, maximum
    waiting: int = 0  # requests that are not running yet, maximum
    preemptions: int = 0  # requests that were evicted and will be recomputed
    steps: int = 0


@dataclass(slots=True)
class MemoryNote:
    """The raw memory figures of one worker of an engine at one moment, in bytes (`wp1.serving.memory`)."""

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
    """How late timers fired in the event loop that sends requests and receives tokens, at 50 samples per second."""

    t: float  # seconds, monotonic, of the last sample
    arm: str
    cell: str
    repeat: int
    lags: list[float]  # seconds


@dataclass(slots=True)
class DeviceSample:
    """One sample of a device while engines are running; a sample that has only a note has null figures."""

    t: float  # seconds, monotonic
    device: str  # "cuda:0", or "host"
    memory_bytes: int | None = None  # GPU: in use by all processes; host: resident, of the engines' processes
    utilisation: float | None = None  # percent; GPU: of time with a kernel running; host: of a core, over all processes
    power_w: float | None = None  # null on a host
    energy_j: float | None = None  # monotonic counter; null on a host and on older GPUs
    note: str | None = None  # why there are no figures; null in samples with figures


# Arm, cell and repeat: the unit that is measured at once, and measured again from its start if it was interrupted.
Unit = tuple[str, str, int]


@dataclass(frozen=True, slots=True)
class Done:
    """One completed repeat of a cell: all its requests have been sent and have ended."""

    arm: str
    cell: str
    repeat: int
    requests: int  # measured
    seconds: float  # that they took
    warmup_s: float  # that the warm-up before them took; 0 if there was none
    died: str | None = None  # the message of an engine that died during it

    @property
    def unit(self) -> Unit:
        return (self.arm, self.cell, self.repeat)


@dataclass(frozen=True)
class Probe:
    """One rate that a search for goodput tried, or, if `ended` is set, the end of the search and its reason."""

    arm: str
    prompt_len: int
    number: int
    rate: float | None = None  # requests/s
    cell: str | None = None
    planned: bool = False  # measured as a cell of the experiment, not for the search
    repeats: int = 0  # measured; fewer than configured if the result was clear early
    attainment: float | None = None
    seconds: float = 0.0
    ended: str | None = None


@dataclass(frozen=True, slots=True)
class ExampleLine:
    """One example of a scored run in one of its cells: what scoring needs, without the text."""

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
    groups: list[str]  # groups with rows in the report; older runs have difficulty and length_group instead
    label: str
    prompt_tokens: int
    tokens_before: int  # of the prompt before truncation


@dataclass(slots=True)
class ScoreLine:
    """The score of an answer in a benchmark from outside wp1 (`wp1.analysis.quality.answers`)."""

    request_id: str
    score: float  # in 0..1
    odd: bool  # the task's rule failed on the answer


def new_record(request: Request, t_intended: float) -> RequestRecord:
    """A new record of a request; its status is "aborted" until the request ends."""
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
    """The part of a request's id that is the same in every arm, and, if `alike` (repeats send the same), in repeats."""
    name = request_id.partition("/")[2]
    return re.sub(r"/r\d+/", "/", name, count=1) if alike else name


# Rows with files of their own, next to the records.
Event = Handoff | QueueLengths | EngineStats


class Row(Protocol):
    """A line of one of a run's files: any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
