"""vLLM's NIXL connectors with an account of every transfer, for vLLM 0.26 to 0.33.

vLLM loads this inside the engines' own processes (kv_connector_module_path). Its own counters are sums over a scheduler
step that name no request, and were silent on a GPU in 0.26. So a `Meter` stands between vLLM and NIXL's agent. The
classes keep vLLM's names, because vLLM decides some things by name.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
from vllm.distributed.kv_transfer.kv_connector.v1.nixl import connector as vllm_nixl
from vllm.distributed.kv_transfer.kv_connector.v1.nixl.stats import NixlKVConnectorStats

from wp1.serving import kv_layout
from wp1.serving.transfer import KEPT_ROWS, MOVED_ROWS
from wp1.serving.transfer.nixl_meter import Meter


class Stats(NixlKVConnectorStats):
    """vLLM's counters and our rows beside them."""

    def reset(self) -> None:
        super().reset()
        self.data[MOVED_ROWS] = []
        self.data[KEPT_ROWS] = []

    def is_empty(self) -> bool:
        return super().is_empty() and not self.data[MOVED_ROWS] and not self.data[KEPT_ROWS]


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
        self._kept = Stats()  # of the scheduler's side
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

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """vLLM has decided how many tokens are to come; those before them it has in its own prefix cache."""
        params = request.kv_transfer_params
        tokens = params.get("wp1_tokens") if params and params.get("do_remote_prefill") else None
        super().update_state_after_alloc(request, blocks, num_external_tokens)  # type: ignore[misc]
        if tokens is None:
            return
        row: Any = (request.request_id, tokens - num_external_tokens if num_external_tokens > 0 else tokens)
        self._kept.data[KEPT_ROWS].append(row)
        if num_external_tokens <= 0:
            # vLLM's push side would take it for one that was given up before it began, and wait for its KV.
            params["do_remote_prefill"] = False

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
            return None if self._kept.is_empty() else self._kept.clone_and_reset()
        meter = self.connector_worker.nixl_wrapper
        rows, meter.rows = meter.rows, []
        self.connector_worker.xfer_stats.data[MOVED_ROWS].extend(rows)
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

    def wp1_let_go(self, request: str) -> None:
        """In a prefill engine: the KV of this request will not be asked for, so its lease ends now."""
        from vllm.distributed.kv_transfer import get_kv_transfer_group

        connector: Any = get_kv_transfer_group()
        held = connector.connector_worker._reqs_to_send
        if request in held:
            # vLLM 0.26 looks at the first only.
            del held[request]
            others = dict(held)
            held.clear()
            held.update({request: 0.0} | others)
