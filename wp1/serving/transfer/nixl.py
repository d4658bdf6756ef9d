"""NIXL between engines, read by the decode side (pull) or written by the prefill side (push)."""

import math
import secrets
import socket
from pathlib import Path
from typing import Any

from wp1.core.errors import WP1Error
from wp1.machine import hardware
from wp1.serving.transfer import Kept, Pools, Role, TransferReport, reports_in

CONNECTORS = {"pull": "NixlPullConnector", "push": "NixlPushConnector"}
WHY = {
    "push": "writes work wherever reads do, and on one node without RDMA reads are served in software "
    "(vllm-project/vllm#52607), 0.47 against 31 GB/s on one H200",
    "pull": "asked for; vLLM's default behind the name NixlConnector",
}

# Linux's range of ports for sockets that ask for any port.
EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
# Ports below are often those of well-known services.
LOWEST = 20_000
TRIES = 100
_given: set[int] = set()


class NixlTransfer:
    """vLLM's NIXL connectors, with the account of every transfer that `wp1.serving.transfer.nixl_connector` adds.

    timeout_s: a transfer that has not ended by then fails its request.
    environment: variables for the engines' processes, UCX_TLS and the like; extra: kv_connector_extra_config.
    """

    overlap = False
    worker_extension = "wp1.serving.transfer.nixl_connector.WorkerExtension"

    def __init__(
        self,
        *,
        name: str,
        pools: Pools,
        timeout_s: float,
        direction: str,
        environment: dict[str, str],
        extra: dict[str, Any],
        overlap: None = None,
        at_once_mib: None = None,
        verify: bool = False,
        why: str | None = None,
    ) -> None:
        self.name = name
        self.timeout_s = timeout_s
        self._direction = direction
        self._why = why or WHY[direction]
        self._environment = environment
        self._extra = extra

    def why(self) -> str:
        return self._why

    def engine_arguments(self) -> dict[str, Any]:
        return {}

    def engine_settings(self, role: Role, engine: str, lease_s: float) -> dict[str, Any]:
        on_cpu = hardware.device_type() == "cpu"
        # UCX would look for network cards, and listen on them; two processes of one host need shared memory and, to
        # meet, TCP within the host.
        environment = ({"UCX_TLS": "tcp,self,sm", "UCX_NET_DEVICES": "lo"} if on_cpu else {}) | self._environment
        settings: dict[str, Any] = {
            "kv_connector": CONNECTORS[self._direction],
            "kv_connector_module_path": "wp1.serving.transfer.nixl_connector",
            "kv_role": "kv_producer" if role == "prefill" else "kv_consumer",
            # A load that failed fails its request; computing it again in silence would hide it.
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
        raise NotImplementedError("NIXL's connectors know the blocks when the prefill has ended")

    def peer(self, from_prefill: dict[str, Any]) -> str:
        return from_prefill["remote_engine_id"]

    def unfetched(self, from_prefill: dict[str, Any]) -> str | None:
        # A side that reads says that it needs nothing; to one that writes nobody says so, until the lease ends.
        return from_prefill.get("remote_request_id") if self._direction == "push" else None

    def reports(self, stats: dict[str, Any]) -> list[TransferReport | Kept]:
        return reports_in(stats)


def _free_port() -> int:
    """Returns a TCP port for the handshake of one engine: free now, and outside of the kernel's ephemeral range.

    The engine binds it only after its workers have started. An ephemeral port may be taken by then, as each rank of a
    tensor parallel engine opens several: vLLM's listener fails with "Address already in use", and the engine waits for
    it forever. Raises WP1Error if no port is free.
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
    found = max(below, above, key=lambda ends: ends[1] - ends[0])
    return found if found[1] - found[0] >= TRIES else (LOWEST, 65535)
