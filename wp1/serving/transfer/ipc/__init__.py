"""KV transfer between engines of one node: the decode engine reads the prefill engine's blocks in place.

It runs at the speed of the node's memory.

Modules, from the outside in:
  this file      settings, in wp1's own process
  connector.py   the connector that vLLM loads into each engine
  prefill.py     the prefill engine's two halves: one in its scheduler's process, one in each worker
  decode.py      the decode engine's half in its scheduler's process
  receiver.py    the decode engine's half in each worker: the thread that fetches blocks
  mailbox.py     messages between engines
  exports.py     memory that another process can read
  layout.py      where the bytes of a block are
  kinds.py       which models have such blocks
  copying.py     the copy; kernel.py: the copy on a GPU
"""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from wp1.core.errors import ConfigError
from wp1.core.parts import Within
from wp1.machine import hardware
from wp1.serving.transfer import Kept, Pools, Role, TransferReport, reports_in
from wp1.serving.transfer.ipc.kinds import obstacle_in_config


class IpcTransfer:
    """CUDA inter-process memory on GPUs, shared memory on a CPU. All engines must be on one node.

    timeout_s: a transfer that takes longer fails its request.
    overlap: blocks move while the rest of the prompt is still being computed.
    at_once_mib: an idle decode engine fetches up to this much KV (MiB per rank) within its first step.
    verify: both engines checksum the blocks of every handoff, and a mismatch fails it. For tests; it is slow.
    """

    worker_extension = "wp1.serving.transfer.ipc.connector.WorkerExtension"

    def __init__(
        self,
        *,
        name: str,
        pools: Pools,
        timeout_s: Annotated[float, Within(0.001)] = 60.0,
        overlap: Literal["on", "off"] = "on",
        at_once_mib: Annotated[float, Within(0)] = 128.0,
        verify: bool = False,
        why: str | None = None,
    ) -> None:
        """Raises ConfigError if `obstacle` returns a reason."""
        if (reason := obstacle(pools)) is not None:
            raise ConfigError(f"transfer={name} cannot be used here: {reason}")
        self.name = name
        self.timeout_s = timeout_s
        self.overlap = overlap == "on"
        self._at_once_mib = at_once_mib
        self._verify = verify
        self._why = why or "asked for; all engines are on this node"

    def why(self) -> str:
        return self._why

    def engine_arguments(self) -> dict[str, Any]:
        # vLLM does not run its hybrid cache manager with an external connector. Without it, layers with a sliding
        # window are stored as full attention, which this connector can move.
        return {"disable_hybrid_kv_cache_manager": True}

    def engine_settings(self, role: Role, engine: str, lease_s: float) -> dict[str, Any]:
        return {
            "kv_connector": "IpcConnector",
            "kv_connector_module_path": "wp1.serving.transfer.ipc.connector",
            "kv_role": "kv_producer" if role == "prefill" else "kv_consumer",
            "kv_load_failure_policy": "fail",
            "kv_connector_extra_config": {
                "engine": engine,
                "lease_s": lease_s,
                "verify": self._verify,
                "at_once_bytes": int(self._at_once_mib * 2**20),
            },
        }

    def prefill_params(self, handoff_id: str, target: str | None) -> dict[str, Any]:
        return {
            "do_remote_decode": True,
            "do_remote_prefill": False,
            "wp1": {"handoff": handoff_id, "to": target},
        }

    def decode_params(self, from_prefill: dict[str, Any], tokens: int) -> dict[str, Any]:
        return {**from_prefill, "wp1_tokens": tokens}

    def early_params(self, handoff_id: str, source: str, tokens: int, wants_token: bool) -> dict[str, Any]:
        return {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_engine_id": source,
            "wp1_tokens": tokens,
            "wp1": {"handoff": handoff_id, "wants_token": wants_token},
        }

    def peer(self, from_prefill: dict[str, Any]) -> str:
        return from_prefill["remote_engine_id"]

    def unfetched(self, from_prefill: dict[str, Any]) -> str | None:
        return None

    def reports(self, stats: dict[str, Any]) -> list[TransferReport | Kept]:
        return reports_in(stats)


def obstacle(pools: Pools) -> str | None:
    """Why this connector cannot serve these pools on this machine, and what to do; None if it can."""
    if pools.tensor_parallel != pools.decode_tensor_parallel:
        return (
            f"scheduler.tensor_parallel={pools.tensor_parallel} and scheduler.decode_tensor_parallel="
            f"{pools.decode_tensor_parallel} must be equal, or use transfer=nixl_push"
        )
    if (reason := obstacle_in_config(pools.model)) is not None:
        return reason
    if pools.prefill_kv_bytes is not None:
        free = hardware.free_shared_memory()
        if free < pools.prefill_kv_bytes:
            return (
                f"the prefill engines' KV needs {pools.prefill_kv_bytes / 2**30:.2f} GiB of shared memory and /dev/shm "
                f"has {free / 2**30:.2f}: enlarge it, lower backend.kv_cache_gib, or use transfer=nixl_push"
            )
    return None


def folder() -> Path:
    """Folder in which the engines of this run find each other, inside the run guard's temporary folder.

    Only its owner can enter it, and it is removed however the run ends.
    """
    path = Path(os.environ["TMPDIR"]) / "kv"
    path.mkdir(mode=0o700, exist_ok=True)
    return path
