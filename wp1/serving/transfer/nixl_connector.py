"""vLLM's NIXL connectors with an account of every transfer, for vLLM 0.26 to 0.33.

vLLM loads this inside the engines' own processes (kv_connector_module_path). Its own counters are sums over a scheduler
step that name no request, and were silent on a GPU in 0.26. So a `Meter` stands between vLLM and NIXL's agent: it adds
up the descriptors that are posted, takes the time, and ends what takes too long. The classes keep vLLM's names, because
vLLM decides some things by name.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
from vllm.distributed.kv_transfer.kv_connector.v1.nixl import connector as vllm_nixl
from vllm.distributed.kv_transfer.kv_connector.v1.nixl.stats import NixlKVConnectorStats

from wp1.serving import kv_layout

# In an engine's stats: rows of `wp1.serving.transfer.TransferReport`.
ROWS = "wp1_transfers"


@dataclass(slots=True)
class _Open:
    request: str
    bytes: int
    begin: float = 0.0


class Meter:
    """NIXL's agent, with the size, begin and end of every transfer noted; everything else is passed on.

    A transfer is over `timeout_s` seconds after it was posted: vLLM is then told that it failed, and cancels it.
    """

    def __init__(self, agent: Any, timeout_s: float) -> None:
        self._agent = agent
        self._timeout_s = timeout_s
        self._sizes: dict[Any, np.ndarray] = {}  # bytes of each descriptor, by prepared list
        self._last: tuple[Any, np.ndarray] | None = None
        self._open: dict[Any, _Open] = {}
        self.rows: list[tuple[str, float, float, int, str | None]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._agent, name)

    def get_xfer_descs(self, descs: Any, *args: Any, **kwargs: Any) -> Any:
        made = self._agent.get_xfer_descs(descs, *args, **kwargs)
        # (address, bytes, device) each.
        self._last = (made, np.asarray([desc[1] for desc in descs], dtype=np.int64))
        return made

    def prep_xfer_dlist(self, agent_name: str, xfer_list: Any, *args: Any, **kwargs: Any) -> Any:
        handle = self._agent.prep_xfer_dlist(agent_name, xfer_list, *args, **kwargs)
        if self._last is not None and self._last[0] is xfer_list:
            self._sizes[handle] = self._last[1]
            self._last = None
        return handle

    def make_prepped_xfer(self, operation: str, local: Any, local_ids: Any, remote: Any, remote_ids: Any,
                          notif_msg: bytes = b"", *args: Any, **kwargs: Any) -> Any:  # fmt: skip
        handle = self._agent.make_prepped_xfer(
            operation, local, local_ids, remote, remote_ids, notif_msg, *args, **kwargs
        )
        sizes = self._sizes.get(local)
        # The message that ends a transfer is the request's id and a number.
        request = notif_msg.decode(errors="replace").rpartition(":")[0]
        self._open[handle] = _Open(request, 0 if sizes is None else int(sizes[np.asarray(local_ids)].sum()))
        return handle

    def transfer(self, handle: Any, *args: Any, **kwargs: Any) -> Any:
        if (opened := self._open.get(handle)) is not None:
            opened.begin = time.monotonic()
        return self._agent.transfer(handle, *args, **kwargs)

    def check_xfer_state(self, handle: Any) -> str:
        state = self._agent.check_xfer_state(handle)
        opened = self._open.get(handle)
        if opened is None:
            return state
        now = time.monotonic()
        if state == "DONE":
            self._end(handle, min(now, opened.begin + self._duration(handle)))
        elif state != "PROC":
            self._end(handle, now, f"NIXL says {state}")
        elif now - opened.begin > self._timeout_s:
            self._end(handle, now, f"not there after {self._timeout_s:g} s (transfer.timeout_s)")
            return "TIMEOUT"
        return state

    def _duration(self, handle: Any) -> float:
        """Seconds by NIXL's own clock, which sees the end before we come to ask; infinite where it does not say."""
        try:
            microseconds = self._agent.get_xfer_telemetry(handle).xferDuration
        except Exception:  # whatever a telemetry that is off raises
            microseconds = 0
        return microseconds / 1e6 if microseconds else float("inf")

    def _end(self, handle: Any, end: float, failed: str | None = None) -> None:
        opened = self._open.pop(handle)
        self.rows.append((opened.request, opened.begin, end, opened.bytes, failed))

    def release_xfer_handle(self, handle: Any) -> Any:
        self._open.pop(handle, None)
        return self._agent.release_xfer_handle(handle)


class Stats(NixlKVConnectorStats):
    """vLLM's counters and our rows beside them."""

    def reset(self) -> None:
        super().reset()
        self.data[ROWS] = []

    def is_empty(self) -> bool:
        return super().is_empty() and not self.data[ROWS]


@contextmanager
def _on_own_cores() -> Iterator[None]:
    """While vLLM's worker is made on a CPU: it stays on the cores that it was given, and NIXL gives way to it there.

    vLLM moves the thread that computes to the last core of the machine, the same one for every engine; and a thread of
    NIXL's polls without a pause on the engine's cores, which together halved the speed of both engines on two cores.
    NIXL's threads get the lowest priority, so they poll when the engine waits. Without them, writes got stuck when
    there were many at once.
    """
    cores, before = os.sched_getaffinity(0), _threads()
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
        for thread in _threads() - before:
            with suppress(OSError):  # it has ended
                os.setpriority(os.PRIO_PROCESS, thread, 19)


def _threads() -> set[int]:
    return {int(entry.name) for entry in os.scandir("/proc/self/task")}


class _Metered:
    """What both directions add to vLLM's connector, on the worker's and on the scheduler's side."""

    connector_worker: Any
    connector_scheduler: Any

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        ours = vllm_config.kv_transfer_config.get_from_extra_config("wp1", {})
        # Before NIXL's agent is made, which reads UCX's variables.
        os.environ.update(ours["environment"])
        with _on_own_cores() if vllm_config.device_config.device_type == "cpu" else nullcontext():
            super().__init__(vllm_config, role, kv_cache_config)  # type: ignore[call-arg]
        if self.connector_worker is not None:
            self.connector_worker.nixl_wrapper = Meter(self.connector_worker.nixl_wrapper, ours["timeout_s"])
            self.connector_worker.xfer_stats = Stats()
        if self.connector_scheduler is not None:
            # Not by vLLM's variable: engines of one process start side by side, and would read each other's.
            self.connector_scheduler.side_channel_port = ours["port"]

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> Any:
        """vLLM takes all tokens of the prompt for computed elsewhere.

        Where the prefill engine's first token is part of the prompt here, its KV is not: decoding begins with it.
        """
        params = request.kv_transfer_params
        if params and params.get("do_remote_prefill") and (tokens := params.get("wp1_tokens")):
            there = tokens - num_computed_tokens
            return (there, True) if there > 0 else (0, False)
        return super().get_num_new_matched_tokens(request, num_computed_tokens)  # type: ignore[misc]

    def peer_lost(self, engine_id: str) -> None:
        """An engine died: what was to come from it will not, so its requests are told, and their blocks freed.

        Reads of ours end by an error of their own. A write of the other side would never end for us; and as its
        process is gone, nothing can write any more to the blocks that this frees.
        """
        worker = self.connector_worker
        for request, meta in list(worker._recving_metadata.items()):
            if meta.remote.engine_id == engine_id and request not in worker._recving_transfers:
                worker._failed_recv_reqs.put(request)

    def get_kv_connector_stats(self) -> Any:
        if self.connector_worker is None:
            return None
        meter = self.connector_worker.nixl_wrapper
        rows, meter.rows = meter.rows, []
        self.connector_worker.xfer_stats.data[ROWS].extend(rows)
        return super().get_kv_connector_stats()  # type: ignore[misc]

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> Stats:
        return Stats() if data is None else Stats(data=data)


class NixlPullConnector(_Metered, vllm_nixl.NixlPullConnector):
    pass


class NixlPushConnector(_Metered, vllm_nixl.NixlPushConnector):
    pass


class WorkerExtension(kv_layout.WorkerExtension):
    """What vLLM adds to its workers by worker_extension_cls, to be called through AsyncLLM.collective_rpc."""

    def wp1_meet(self, engines: list[str]) -> None:
        """NIXL's agents meet with the first request."""

    def wp1_peer_lost(self, engine_id: str) -> None:
        from vllm.distributed.kv_transfer import get_kv_transfer_group

        connector: Any = get_kv_transfer_group()
        connector.peer_lost(engine_id)
