"""The connector that vLLM loads into each engine (kv_connector_module_path), for vLLM 0.26 to 0.33.

It only translates between vLLM's calls and the halves in `prefill`, `decode` and `receiver`.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
import vllm
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
)
from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorStats
from vllm.distributed.parallel_state import get_tensor_model_parallel_rank
from vllm.v1.request import RequestStatus

from wp1.serving import kv_layout
from wp1.serving.kv_layout import specs_of
from wp1.serving.transfer import KEPT_ROWS, MOVED_ROWS, ipc
from wp1.serving.transfer.ipc import exports
from wp1.serving.transfer.ipc.copying import Copier, copier_of
from wp1.serving.transfer.ipc.decode import IDLE_WAIT_S, DecodeScheduler
from wp1.serving.transfer.ipc.kinds import obstacle_in_engine
from wp1.serving.transfer.ipc.layout import LayoutError, layout_of
from wp1.serving.transfer.ipc.mailbox import Mailbox, Message, Sender
from wp1.serving.transfer.ipc.prefill import PrefillOrders, PrefillScheduler, PrefillWorker
from wp1.serving.transfer.ipc.receiver import DecodeOrders, Receiver


@dataclass
class Orders(KVConnectorMetadata):
    """Orders of the scheduler's half to the workers, sent with each step."""

    prefill: PrefillOrders = field(default_factory=PrefillOrders)
    decode: DecodeOrders = field(default_factory=DecodeOrders)


class Stats(KVConnectorStats):
    """Rows of `wp1.serving.transfer.TransferReport` and `Kept` since the last call."""

    def reset(self) -> None:
        self.data = {MOVED_ROWS: [], KEPT_ROWS: []}

    def aggregate(self, other: KVConnectorStats) -> KVConnectorStats:
        for rows in (MOVED_ROWS, KEPT_ROWS):
            self.data.setdefault(rows, []).extend(other.data.get(rows, []))
        return self

    def reduce(self) -> dict[str, int | float]:
        return {"transfers": len(self.data.get(MOVED_ROWS, []))}

    def is_empty(self) -> bool:
        return not self.data.get(MOVED_ROWS) and not self.data.get(KEPT_ROWS)


class IpcConnector(KVConnectorBase_V1):
    """One of the engine's halves, by role: in the scheduler's process, or in a worker."""

    def __init__(self, vllm_config: Any, role: KVConnectorRole, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        config = vllm_config.kv_transfer_config
        self._engine: str = config.get_from_extra_config("engine", "")
        self._verify: bool = config.get_from_extra_config("verify", False)
        self._produces: bool = config.is_kv_producer
        self._config = vllm_config
        self._cache = kv_cache_config
        stages = vllm_config.parallel_config.pipeline_parallel_size
        if (reason := obstacle_in_engine(kv_cache_config.kv_cache_groups, stages)) is not None:
            raise LayoutError(reason)
        folder = self._folder = ipc.folder()
        self._sender = Sender(folder)
        self._broken: set[int] = set()
        self._rows: list[tuple[Any, ...]] = []
        self._new: set[str] = set()  # requests that were allocated blocks in this step
        self._ahead: dict[str, str] = {}  # request: handoff, from when its KV is reported early until it has arrived
        self._failed_ahead: dict[str, list[int]] = {}  # handoff: our blocks, until a step needs them
        self._prefill_worker: PrefillWorker | None = None
        self._receiver: Receiver | None = None
        self._copier: Copier | None = None
        self._after: Any = None  # a fence, from the beginning of a step to its `start_load_kv`
        self._obeyed = False  # whether this step's orders were carried out before its `start_load_kv`
        self._prefill: PrefillScheduler | None = None
        self._decode: DecodeScheduler | None = None
        if role is not KVConnectorRole.SCHEDULER:
            return
        block_tokens = vllm_config.cache_config.block_size
        if self._produces:
            ranks = vllm_config.parallel_config.tensor_parallel_size
            lease_s = config.get_from_extra_config("lease_s", 600.0)
            self._prefill = PrefillScheduler(self._engine, ranks, block_tokens, lease_s, self._sender)
        else:
            box = Mailbox(folder, f"{self._engine}.scheduler")
            at_once = self._at_once_tokens(block_tokens)
            prefix_caching = bool(vllm_config.cache_config.enable_prefix_caching)
            self._decode = DecodeScheduler(box, block_tokens, at_once, self._to_workers, not prefix_caching)

    def _to_workers(self, message: Message) -> None:
        for rank in range(self._config.parallel_config.tensor_parallel_size):
            self._sender.send(f"{self._engine}.{rank}", message)

    def _at_once_tokens(self, block_tokens: int) -> int:
        """Largest number of tokens whose KV is fetched within one step.

        0 with `verify`, whose checksums take several steps, and if a step begins by zeroing its new blocks.
        """
        if self._verify or getattr(self._cache, "needs_kv_cache_zeroing", False):
            return 0
        block_bytes = sum(
            spec.page_size_bytes for group in self._cache.kv_cache_groups for spec in specs_of(group).values()
        )
        at_once_bytes = self._config.kv_transfer_config.get_from_extra_config("at_once_bytes", 0)
        return int(at_once_bytes // block_bytes * block_tokens)

    # Called in a worker.

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        pages = {
            name: spec.page_size_bytes
            for group in self._cache.kv_cache_groups
            for name, spec in specs_of(group).items()
        }
        own = {name: tensor for name, tensor in kv_caches.items() if name in pages}
        layout = layout_of(own, pages, self._cache.num_blocks)
        rank = get_tensor_model_parallel_rank()
        box = f"{self._engine}.{rank}"
        mailbox = Mailbox(self._folder, box)
        facts = {
            "vllm": vllm.__version__,
            "model": self._config.model_config.model,
            "kv_dtype": str(self._config.cache_config.cache_dtype),
            "block_tokens": self._config.cache_config.block_size,
            "device": layout.storages[0].device.type,
        }
        if self._produces:
            exports.offer(self._folder / f"{box}.json", layout, self._engine, box, facts)
            # Sharing moves the memory, so anything that keeps addresses is built after it.
            mark = _event if facts["device"] == "cuda" else lambda: lambda: True
            self._prefill_worker = PrefillWorker(rank, mailbox, self._sender, mark, copier_of(layout).checksum)
        else:
            facts["form"] = layout.form
            folder = self._folder
            self._copier = copier_of(layout)
            self._receiver = Receiver(
                mailbox,
                self._sender,
                box,
                self._copier,
                layout.block_bytes,
                lambda engine: exports.open_peer(folder / f"{engine}.{rank}.json", facts),
                self._verify,
            )
            self._receiver.start()

    def bind_connector_metadata(self, connector_metadata: KVConnectorMetadata) -> None:
        super().bind_connector_metadata(connector_metadata)
        if self._receiver is None or self._copier is None:
            return
        assert isinstance(connector_metadata, Orders)
        orders = connector_metadata.decode
        # The fence is set here because vLLM may call start_load_kv after launching this step's own kernels, and loads
        # must not wait for those.
        self._after = self._copier.fence() if orders.loads else None
        # If the step's kernels need KV that is still on its way, they must not be launched before it has arrived.
        self._obeyed = bool(orders.needed)
        if self._obeyed:
            self._receiver.obey(orders, self._after)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        if self._receiver is None or self._obeyed:
            return
        orders = self._get_connector_metadata()
        assert isinstance(orders, Orders)
        self._receiver.obey(orders.decode, self._after)

    def wait_for_layer_load(self, layer_name: str) -> None:
        pass

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        pass

    def wait_for_save(self) -> None:
        pass

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        if self._prefill_worker is not None:
            orders = self._get_connector_metadata()
            assert isinstance(orders, Orders)
            return self._prefill_worker.obey(orders.prefill) or None, None
        if self._receiver is None:
            return None, None
        orders = self._get_connector_metadata()
        assert isinstance(orders, Orders)
        # vLLM learns of a load that ends after this call only with the next step, after an idle pause of 1 ms.
        self._receiver.wait(orders.decode.soon, IDLE_WAIT_S)
        reported = self._receiver.not_over(orders.decode.ahead)
        self._ahead |= {request: handoff for request, handoff in orders.decode.ahead if request in reported}
        while self._receiver.ended:
            ended = self._receiver.ended.popleft()
            handoff = self._ahead.pop(ended.request, None)
            # vLLM does not wait for KV that a step has already used, or that was reported early.
            if handoff is None and not ended.at_once:
                reported.add(ended.request)
            if ended.error is not None and handoff is not None:
                self._failed_ahead[handoff] = ended.blocks
            elif ended.error is not None:
                self._broken.update(ended.blocks)
            if ended.report is not None:
                self._rows.append(ended.report)
        # vLLM looks for owners of broken blocks among the requests that wait for KV and those that the step computed.
        given_up = {handoff for handoff, _ in orders.decode.given_up}
        for handoff in orders.decode.needed:
            blocks = self._failed_ahead.pop(handoff, [])
            if handoff not in given_up:
                self._broken.update(blocks)
        return None, reported or None

    def get_block_ids_with_load_errors(self) -> set[int]:
        broken, self._broken = self._broken, set()
        return broken

    def get_kv_connector_stats(self) -> KVConnectorStats | None:
        rows, self._rows = self._rows, []
        kept = [] if self._decode is None else self._decode.take_kept()
        return Stats(data={MOVED_ROWS: rows, KEPT_ROWS: kept}) if rows or kept else None

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> KVConnectorStats:
        return Stats(data={MOVED_ROWS: [], KEPT_ROWS: []} if data is None else data)

    def shutdown(self) -> None:
        if self._receiver is not None:
            self._receiver.stop()

    def meet(self, engines: list[str]) -> None:
        assert self._receiver is not None
        for engine in engines:
            self._receiver.meet(engine)

    def peer_lost(self, engine: str) -> None:
        if self._receiver is not None:
            self._receiver.lose(engine)

    # Called in the scheduler's process.

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        if self._decode is None:
            return 0, False
        return self._decode.to_come(request, num_computed_tokens)

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        [ids] = blocks.get_block_ids()
        if self._decode is not None:
            self._decode.allocated(request, ids, num_external_tokens)
        if self._prefill is not None:
            self._prefill.allocated(request, ids)
            self._new.add(request.request_id)

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        orders = Orders()
        if self._prefill is not None:
            cached = scheduler_output.scheduled_cached_reqs
            grown = [
                (name, blocks[0])
                for name, blocks in zip(cached.req_ids, cached.new_block_ids, strict=True)
                if blocks and name not in self._new
            ]
            orders.prefill = self._prefill.orders(scheduler_output.num_scheduled_tokens, grown)
            self._new = set()
        if self._decode is not None:
            orders.decode = self._decode.orders(scheduler_output.num_scheduled_tokens)
        return orders

    def update_connector_output(self, connector_output: Any) -> None:
        if self._decode is not None:
            self._decode.arrived(set(connector_output.finished_recving or ()))

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        if self._decode is not None:
            self._decode.finished(request)
            return False, None
        assert self._prefill is not None
        ended = (RequestStatus.FINISHED_LENGTH_CAPPED, RequestStatus.FINISHED_STOPPED)
        params = self._prefill.finished(request, block_ids, request.status in ended)
        return params is not None, params


def _event() -> Any:
    event = torch.cuda.Event()
    event.record()
    return event.query


class WorkerExtension(kv_layout.WorkerExtension):
    """Mixed into vLLM's workers by worker_extension_cls; called through AsyncLLM.collective_rpc."""

    def wp1_meet(self, engines: list[str]) -> None:
        _connector().meet(engines)

    def wp1_peer_lost(self, engine: str) -> None:
        _connector().peer_lost(engine)


def _connector() -> IpcConnector:
    from vllm.distributed.kv_transfer import get_kv_transfer_group

    connector = get_kv_transfer_group()
    assert isinstance(connector, IpcConnector)
    return connector
