"""How KV blocks get from a prefill engine to a decode engine: what a scheduler needs of a connector, whichever it is.

Another connector is a module here with a class like this, and a file in conf/transfer/. What runs inside the engines'
own processes (the connector that vLLM loads) is in a module of its own beside it, as it imports vllm.
"""

from dataclasses import dataclass
from typing import Any, Literal, Protocol

Role = Literal["prefill", "decode"]


@dataclass(frozen=True, slots=True)
class TransferReport:
    """One finished movement as the connector saw it, on one tensor-parallel rank; seconds on the monotonic clock."""

    handoff_id: str
    t_begin: float
    t_end: float
    bytes: int
    failed: str | None = None  # why, where it did not arrive


class KVTransfer(Protocol):
    """Settings of a connector for both ends, and what it says of each transfer. Cheap; no engine, no vllm."""

    name: str
    timeout_s: float
    # A class that vLLM mixes into its workers, with `wp1_peer_lost(peer)`.
    worker_extension: str

    def why(self) -> str:
        """Why this one was chosen, for run_metadata.json."""
        ...

    def engine_settings(self, role: Role, lease_s: float) -> dict[str, Any]:
        """Fields of vLLM's KVTransferConfig for one engine; two calls are for two engines.

        lease_s: seconds for which a prefill engine keeps the KV of a request that nobody fetches.
        """
        ...

    def prefill_params(self) -> dict[str, Any]:
        """`kv_transfer_params` of a request whose KV is to stay until it is fetched."""
        ...

    def decode_params(self, from_prefill: dict[str, Any], tokens: int) -> dict[str, Any]:
        """`kv_transfer_params` of the request that fetches the KV of `tokens` tokens."""
        ...

    def peer(self, from_prefill: dict[str, Any]) -> str:
        """How the decode side's connector calls the engine that has the KV."""
        ...

    def reports(self, stats: dict[str, Any]) -> list[TransferReport]:
        """The transfers in what an engine's connector counted since the last time."""
        ...
