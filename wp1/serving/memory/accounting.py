"""A worker's notes on its memory, at every stage of its start and while it serves requests.

Mixed in before vLLM's worker class. It measures before and after vLLM's methods and does not change what they do. vLLM
calls a worker's methods one after another in one thread, so a step of the model has ended when the next one begins.
"""

import os
from collections.abc import Sequence
from typing import Any, Protocol

from wp1.serving.memory import tensors


class Meter(Protocol):
    """One device's memory as one process sees it, in bytes."""

    def note(self) -> dict[str, Any]:
        """Memory in use now, as far as the device reports it."""
        ...

    def kv_is_there(self, kv: Sequence[Any]) -> None:
        """Called once the KV cache is allocated. kv: its storages."""
        ...

    def begin(self) -> None:
        """A step of the model begins: its peak counts from here."""
        ...

    def end(self) -> int | None:
        """The step's peak above the memory in use at its beginning, without KV; None if unknown."""
        ...

    def account(self, weights: Sequence[Any], kv: Sequence[Any]) -> dict[str, Any]:
        """Memory in use now, by part. weights, kv: their storages."""
        ...


class Blocks:
    """Tracks which KV blocks each request has, from what the engine's scheduler sends to its workers."""

    def __init__(self) -> None:
        self._held: dict[str, set[tuple[int, int]]] = {}  # (group of layers, block)
        self.most = 0  # peak blocks of one request
        self.most_at_once = 0  # peak blocks of all requests together

    def reset(self) -> None:
        """Restarts the peaks."""
        self.most = self.most_at_once = 0

    def step(self, output: Any) -> None:
        """A step begins. output: vLLM's SchedulerOutput."""
        for name in output.finished_req_ids:
            self._held.pop(name, None)
        for new in output.scheduled_new_reqs:
            self._held[new.req_id] = _numbered(new.block_ids)
        cached = output.scheduled_cached_reqs
        for name, blocks in zip(cached.req_ids, cached.new_block_ids, strict=True):
            if name in cached.resumed_req_ids:
                self._held[name] = set()
            self._held.setdefault(name, set()).update(_numbered(blocks))
        self.most = max([self.most, *map(len, self._held.values())])
        self.most_at_once = max(self.most_at_once, sum(map(len, self._held.values())))


def _numbered(blocks: Any) -> set[tuple[int, int]]:
    return set() if blocks is None else {(group, block) for group, ids in enumerate(blocks) for block in ids}


class Accounting:
    """Adds `wp1_memory_*` to vLLM's worker, for AsyncLLM.collective_rpc. meter_class: the device's `Meter`."""

    meter_class: Any  # local_rank -> Meter

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._wp1_meter: Meter = self.meter_class(kwargs.get("local_rank", 0))
        self._wp1_blocks = Blocks()
        self._wp1_stages: list[dict[str, Any]] = []
        self._wp1_kind: str | None = None  # of the current step
        self._wp1_peaks: dict[str, int | None] = {}
        self._wp1_steps: dict[str, int] = {}
        self._wp1_graphs: int | None = None
        self._wp1_note("imported")
        super().__init__(*args, **kwargs)

    def _wp1_note(self, stage: str) -> None:
        self._wp1_stages.append({"stage": stage, **self._wp1_meter.note()})

    def init_device(self, *args: Any, **kwargs: Any) -> Any:
        result = super().init_device(*args, **kwargs)  # type: ignore[misc]
        self._wp1_note("device")
        return result

    def load_model(self, *args: Any, **kwargs: Any) -> Any:
        result = super().load_model(*args, **kwargs)  # type: ignore[misc]
        self._wp1_note("weights")
        return result

    def determine_available_memory(self, *args: Any, **kwargs: Any) -> Any:
        result = super().determine_available_memory(*args, **kwargs)  # type: ignore[misc]
        self._wp1_note("profiled")
        return result

    def initialize_from_config(self, *args: Any, **kwargs: Any) -> Any:
        result = super().initialize_from_config(*args, **kwargs)  # type: ignore[misc]
        self._wp1_meter.kv_is_there(self._wp1_storages()[1])
        self._wp1_note("kv_cache")
        return result

    def compile_or_warm_up_model(self, *args: Any, **kwargs: Any) -> Any:
        runner: Any = self.model_runner  # type: ignore[attr-defined]
        capture = runner.capture_model

        def counted(*args: Any, **kwargs: Any) -> Any:
            graph_bytes = capture(*args, **kwargs)
            self._wp1_graphs = graph_bytes if isinstance(graph_bytes, int) else None
            return graph_bytes

        runner.capture_model = counted
        try:
            result = super().compile_or_warm_up_model(*args, **kwargs)  # type: ignore[misc]
        finally:
            del runner.capture_model
        # vLLM may have warmed up with its own dummy requests.
        self._wp1_end_step()
        self._wp1_blocks = Blocks()
        self._wp1_note("ready")
        return result

    def execute_model(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        self._wp1_end_step()
        self._wp1_blocks.step(scheduler_output)
        tokens = scheduler_output.num_scheduled_tokens
        if tokens:
            # A prompt's chunk has many tokens; a decode step has one for each request.
            self._wp1_kind = "prefill" if max(tokens.values()) > 1 else "decode"
            self._wp1_meter.begin()
        return super().execute_model(scheduler_output, *args, **kwargs)  # type: ignore[misc]

    def _wp1_end_step(self) -> None:
        if self._wp1_kind is None:
            return
        kind, self._wp1_kind = self._wp1_kind, None
        peak = self._wp1_meter.end()
        self._wp1_steps[kind] = self._wp1_steps.get(kind, 0) + 1
        if peak is not None:
            self._wp1_peaks[kind] = max(self._wp1_peaks.get(kind) or 0, peak)

    def _wp1_storages(self) -> tuple[Sequence[Any], Sequence[Any]]:
        runner: Any = self.model_runner  # type: ignore[attr-defined]
        return tensors.of_module(runner.get_model()), tensors.storages([runner.kv_caches])

    def wp1_memory_start(self) -> dict[str, Any]:
        """Memory in use at each stage of the start, and vLLM's own profile; bytes."""
        weights, kv = self._wp1_storages()
        return {
            "rank": self.rank,  # type: ignore[attr-defined]
            "pid": os.getpid(),
            "stages": self._wp1_stages,
            "weight_tensors": tensors.nbytes(weights),
            "kv_pool": tensors.nbytes(kv),
            "vllm": _own_profile(self) | ({} if self._wp1_graphs is None else {"capture_model": self._wp1_graphs}),
        }

    def wp1_memory_begin(self) -> dict[str, Any]:
        """Restarts the peaks. Returns the memory in use now, by part."""
        self._wp1_end_step()
        self._wp1_blocks.reset()
        self._wp1_peaks, self._wp1_steps = {}, {}
        return {"rank": self.rank, **self._wp1_meter.account(*self._wp1_storages())}  # type: ignore[attr-defined]

    def wp1_memory_end(self) -> dict[str, Any]:
        """Memory in use now, by part, and the peaks since `wp1_memory_begin`."""
        self._wp1_end_step()
        return {
            "rank": self.rank,  # type: ignore[attr-defined]
            **self._wp1_meter.account(*self._wp1_storages()),
            "steps": self._wp1_steps,
            "step_peaks": self._wp1_peaks,
            "blocks_a_request": self._wp1_blocks.most,
            "blocks_at_once": self._wp1_blocks.most_at_once,
        }


def _own_profile(worker: Any) -> dict[str, int]:
    """Bytes from vLLM's own memory profiling, under vLLM's names, as far as this version and device have them."""
    runner = worker.model_runner
    profile = {
        "requested_memory": getattr(worker, "requested_memory", None),
        "model_memory_usage": getattr(runner, "model_memory_usage", None),
        "peak_activation_memory": getattr(worker, "peak_activation_memory", None),
        "non_torch_memory": getattr(worker, "non_torch_memory", None),
        "total_consumed": getattr(worker, "total_consumed", None),
        "cudagraph_memory_estimate": getattr(worker, "cudagraph_memory_estimate", None),
        "available_kv_cache_memory_bytes": getattr(worker, "available_kv_cache_memory_bytes", None),
    }
    return {name: int(value) for name, value in profile.items() if value is not None}
