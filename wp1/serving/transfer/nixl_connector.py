"""vLLM's NIXL connectors with a report of every transfer, for vLLM 0.26 to 0.33.

vLLM loads this module in the engines' own processes (kv_connector_module_path). vLLM's own counters are sums over a
scheduler step, without request ids, and stayed at zero on a GPU in 0.26. So a `Meter` wraps NIXL's agent. The classes
keep vLLM's names, because vLLM decides some things by name.
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
    """vLLM's counters, plus our rows."""

    def reset(self) -> None:
        super().reset()
        self.data[MOVED_ROWS] = []
        self.data[KEPT_ROWS] = []

    def is_empty(self) -> bool:
        return super().is_empty() and not self.data[MOVED_ROWS] and not self.data[KEPT_ROWS]


@contextmanager
def _on_own_cores() -> Iterator[None]:
    """Wraps the creation of vLLM's worker on a CPU: keeps it on its assigned cores and lowers NIXL's priority there.

    vLLM moves the computing thread to the last core of the machine, the same one for every engine, and a NIXL thread
    polls without a pause on the engine's cores. Together these halved the speed of both engines on two cores. NIXL's
    threads get the lowest priority, so that they poll while the engine waits. They are needed: without them, writes got
    stuck when there were many at once.
    """
    cores, before = os.sched_getaffinity(0), _threads()
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
        for thread in _threads() - before:
            with suppress(OSError):  # the thread has ended
                os.setpriority(os.PRIO_PROCESS, thread, 19)


def _threads() -> set[int]:
    return {int(entry.name) for entry in os.scandir("/proc/self/task")}


class _Metered:
    """Additions to vLLM's connector for both directions, on the worker's and on the scheduler's side."""

    connector_worker: Any
    connector_scheduler: Any

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        ours = vllm_config.kv_transfer_config.get_from_extra_config("wp1", {})
        # Must be set before NIXL's agent is created, which reads UCX's variables.
        os.environ.update(ours["environment"])
        with _on_own_cores() if vllm_config.device_config.device_type == "cpu" else nullcontext():
            super().__init__(vllm_config, role, kv_cache_config)  # type: ignore[call-arg]
        if self.connector_worker is not None:
            self.connector_worker.nixl_wrapper = Meter(self.connector_worker.nixl_wrapper, ours["timeout_s"])
            self.connector_worker.xfer_stats = Stats()
        self._kept = Stats()  # on the scheduler's side
        if self.connector_scheduler is not None:
            # vLLM's environment variable would not do: engines of one process start side by side and would read each
            # other's.
            self.connector_scheduler.side_channel_port = ours["port"]

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> Any:
        """Number of tokens whose KV is fetched, and whether that is asynchronous.

        vLLM would assume that the KV of all prompt tokens is remote. If the prefill engine's first output token is part
        of the prompt here, its KV is not: decoding begins with it.
        """
        params = request.kv_transfer_params
        if params and params.get("do_remote_prefill") and (tokens := params.get("wp1_tokens")):
            remote = tokens - num_computed_tokens
            return (remote, True) if remote > 0 else (0, False)
        return super().get_num_new_matched_tokens(request, num_computed_tokens)  # type: ignore[misc]

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """Notes how many tokens are not fetched: vLLM has those before the external ones in its own prefix cache."""
        params = request.kv_transfer_params
        tokens = params.get("wp1_tokens") if params and params.get("do_remote_prefill") else None
        super().update_state_after_alloc(request, blocks, num_external_tokens)  # type: ignore[misc]
        if tokens is None:
            return
        row: Any = (request.request_id, tokens - num_external_tokens if num_external_tokens > 0 else tokens)
        self._kept.data[KEPT_ROWS].append(row)
        if num_external_tokens <= 0:
            # Otherwise vLLM's push side would treat the request as aborted before it began, and wait for its KV.
            params["do_remote_prefill"] = False

    def peer_lost(self, engine_id: str) -> None:
        """A prefill engine died: fails the requests that wait for its KV, which frees their blocks.

        Our own reads end with an error by themselves. A write by the other side would never end for us. As its process
        is gone, nothing can still write to the blocks that this frees.
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
    """Mixed into vLLM's workers by worker_extension_cls; called through AsyncLLM.collective_rpc."""

    def wp1_meet(self, engines: list[str]) -> None:
        """Does nothing: NIXL's agents connect with the first request."""

    def wp1_peer_lost(self, engine_id: str) -> None:
        from vllm.distributed.kv_transfer import get_kv_transfer_group

        connector: Any = get_kv_transfer_group()
        connector.peer_lost(engine_id)

    def wp1_let_go(self, request: str) -> None:
        """In a prefill engine: ends the lease of this request's KV now, because it will not be fetched."""
        from vllm.distributed.kv_transfer import get_kv_transfer_group

        connector: Any = get_kv_transfer_group()
        leases = connector.connector_worker._reqs_to_send
        if request in leases:
            # vLLM 0.26 checks only the first entry for expiry, so the request has to become that.
            del leases[request]
            others = dict(leases)
            leases.clear()
            leases.update({request: 0.0} | others)
