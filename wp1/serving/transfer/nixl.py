"""KV transfer by NIXL: the decode side reads (pull) or the prefill side writes (push)."""

import math
import secrets
import socket
from pathlib import Path
from typing import Annotated, Any, Literal

from wp1.core.errors import WP1Error
from wp1.core.parts import Within
from wp1.machine import hardware
from wp1.serving.transfer import Kept, Pools, Role, TransferReport, reports_in

CONNECTORS = {"pull": "NixlPullConnector", "push": "NixlPushConnector"}
WHY = {
    "push": "writes work wherever reads do; on one node without RDMA, reads are served in software "
    "(vllm-project/vllm#52607): 0.47 GB/s instead of 31 GB/s on one H200",
    "pull": "asked for; vLLM's default, named NixlConnector there",
}

# Linux's range of ephemeral ports, which it assigns to sockets without a fixed port.
EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
# Ports below this are often used by well-known services.
LOWEST = 20_000
TRIES = 100
_given: set[int] = set()


class NixlTransfer:
    """vLLM's NIXL connectors; `wp1.serving.transfer.nixl_connector` adds a report of every transfer.

    timeout_s: a transfer that takes longer fails its request.
    environment: variables for the engines' processes, such as UCX_TLS; extra: kv_connector_extra_config.
    """

    overlap = False
    worker_extension = "wp1.serving.transfer.nixl_connector.WorkerExtension"

    def __init__(
        self,
        *,
        name: str,
        pools: Pools,
        timeout_s: Annotated[float, Within(0.001)] = 60.0,
        direction: Literal["pull", "push"],
        environment: dict[str, str],
        extra: dict[str, Any],
        why: str | None = None,
    ) -> None:
        self.name = name
        self.timeout_s = timeout_s
        self._direction = direction
        # The reasons are those of vLLM's own connectors; a subclass has reasons of its own.
        self._why = why or (WHY[direction] if type(self) is NixlTransfer else "asked for")
        self._environment = environment
        self._extra = extra

    def why(self) -> str:
        return self._why

    def engine_arguments(self) -> dict[str, Any]:
        return {}

    def engine_settings(self, role: Role, engine: str, lease_s: float) -> dict[str, Any]:
        on_cpu = hardware.device_type() == "cpu"
        # By default UCX looks for network cards and listens on them. Two processes on one host need only shared memory,
        # and TCP within the host to find each other.
        environment = ({"UCX_TLS": "tcp,self,sm", "UCX_NET_DEVICES": "lo"} if on_cpu else {}) | self._environment
        settings: dict[str, Any] = {
            "kv_connector": CONNECTORS[self._direction],
            "kv_connector_module_path": "wp1.serving.transfer.nixl_connector",
            "kv_role": "kv_producer" if role == "prefill" else "kv_consumer",
            # A failed load must fail its request: recomputing the KV silently would hide it.
            "kv_load_failure_policy": "fail",
            "kv_connector_extra_config": {
                "kv_lease_duration": math.ceil(lease_s),
                "wp1": {"port": _free_port(), "environment": environment, "timeout_s": self.timeout_s},
            }
            | self._extra,
        }
        if on_cpu:
            settings["kv_buffer_device"] = "cpu"
        return settings

    def prefill_params(self, handoff_id: str, target: str | None) -> dict[str, Any]:
        remote = dict.fromkeys(("remote_engine_id", "remote_block_ids", "remote_host", "remote_port"))
        return {"do_remote_decode": True, "do_remote_prefill": False, **remote}

    def decode_params(self, from_prefill: dict[str, Any], tokens: int) -> dict[str, Any]:
        return {**from_prefill, "wp1_tokens": tokens}

    def early_params(self, handoff_id: str, source: str, tokens: int, wants_token: bool) -> dict[str, Any]:
        raise NotImplementedError("NIXL's connectors know a prompt's blocks only after its prefill has ended")

    def peer(self, from_prefill: dict[str, Any]) -> str:
        return from_prefill["remote_engine_id"]

    def unfetched(self, from_prefill: dict[str, Any]) -> str | None:
        # With pull, the decode side reports that it needs nothing. With push, vLLM does not tell the prefill side,
        # which would keep the KV until its lease ends.
        return from_prefill.get("remote_request_id") if self._direction == "push" else None

    def reports(self, stats: dict[str, Any]) -> list[TransferReport | Kept]:
        return reports_in(stats)


def _free_port() -> int:
    """Returns a TCP port for one engine's handshake that is free now and outside the kernel's ephemeral range.

    The engine binds it only after its workers have started. By then an ephemeral port may be taken, because each rank
    of a tensor-parallel engine opens several. vLLM's listener would fail with "Address already in use", and the engine
    would wait for it forever. Raises WP1Error if no port is free.
    """
    first, last = _outside_of(EPHEMERAL)
    for _ in range(TRIES):
        port = first + secrets.randbelow(last - first + 1)
        if port in _given:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("localhost", port))
            except OSError:
                continue
        _given.add(port)
        return port
    raise WP1Error(f"no TCP port from {first} to {last} is free on localhost for NIXL's handshake: use transfer=ipc")


def _outside_of(path: Path) -> tuple[int, int]:
    """Returns the first and last port of the larger range below or above the ephemeral ports.

    path: Linux's file with the ephemeral range. If that leaves fewer than TRIES ports, all from LOWEST on are used.
    """
    try:
        first, last = map(int, path.read_text(encoding="ascii").split())
    except (OSError, ValueError):
        first, last = 32768, 60999  # Linux's default
    below, above = (LOWEST, first - 1), (last + 1, 65535)
    larger = max(below, above, key=lambda ends: ends[1] - ends[0])
    return larger if larger[1] - larger[0] >= TRIES else (LOWEST, 65535)
