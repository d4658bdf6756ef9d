"""How KV blocks get from a prefill engine to a decode engine: what a scheduler needs of a connector, whichever it is.

Another connector is a module here with a class like this, and a file in conf/transfer/. What runs inside the engines'
own processes (the connector that vLLM loads) is in a module of its own beside it, as it imports vllm.
"""

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from wp1.core.parts import Kind

Role = Literal["prefill", "decode"]


@dataclass(frozen=True, slots=True)
class Pools:
    """What a connector has to go by when it is chosen.

    prefill_kv_bytes: host memory of the prefill engines' KV on a CPU; None on GPUs. model: its config.json.
    """

    tensor_parallel: int  # of a prefill engine
    decode_tensor_parallel: int
    prefill_kv_bytes: int | None
    model: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TransferReport:
    """One finished movement as the connector saw it, on one tensor-parallel rank; seconds on the monotonic clock."""

    handoff_id: str
    t_begin: float
    t_end: float
    bytes: int | None  # None: they moved, and the connector cannot tell how many
    failed: str | None = None  # why, where it did not arrive
    # Where the connector knows: seconds in which bytes moved, by the device's clock; seconds that blocks which were
    # ready waited for that; blocks; and in how many runs of neighbours they lay.
    copy_s: float | None = None
    wait_s: float | None = None
    blocks: int | None = None
    runs: int | None = None


@dataclass(frozen=True, slots=True)
class Kept:
    """What a decode engine's connector says before a transfer: the first `tokens` of the prompt need not come.

    They are whole blocks that the engine had in its own prefix cache, by vLLM's scheduler; or all tokens of the prompt,
    where the engine has the rest too or computes it itself.
    """

    handoff_id: str
    tokens: int


# In an engine's connector stats: rows of TransferReport and of Kept.
MOVED_ROWS = "wp1_transfers"
KEPT_ROWS = "wp1_kept"


def reports_in(stats: dict[str, Any]) -> "list[TransferReport | Kept]":
    """What both connectors of wp1 report. What was kept comes first, as it is known first."""
    kept = [Kept(*row) for row in stats.get(KEPT_ROWS, ())]
    return [*kept, *(TransferReport(*row) for row in stats.get(MOVED_ROWS, ()))]


class KVTransfer(Protocol):
    """Settings of a connector for both ends, and what it says of each transfer. Cheap; no engine, no vllm."""

    name: str
    timeout_s: float
    # Whether blocks can move while the rest of their prompt is computed; then `early_params` is there to be used.
    overlap: bool
    # A class that vLLM mixes into its workers, with `wp1_meet(engines)` and `wp1_peer_lost(peer)`.
    worker_extension: str

    def why(self) -> str:
        """Why this one was chosen, for run_metadata.json."""
        ...

    def engine_arguments(self) -> dict[str, Any]:
        """Arguments of vLLM's engine that this connector needs."""
        ...

    def engine_settings(self, role: Role, engine: str, lease_s: float) -> dict[str, Any]:
        """Fields of vLLM's KVTransferConfig for one engine, by its name; two calls are for two engines.

        lease_s: seconds for which a prefill engine keeps the KV of a request that nobody fetches.
        """
        ...

    def prefill_params(self, handoff_id: str, target: str | None) -> dict[str, Any]:
        """`kv_transfer_params` of a request whose KV is to stay until it is fetched.

        target: the decode engine that was given `early_params` for it, if one was.
        """
        ...

    def decode_params(self, from_prefill: dict[str, Any], tokens: int) -> dict[str, Any]:
        """`kv_transfer_params` of the request that fetches the KV of `tokens` tokens."""
        ...

    def early_params(self, handoff_id: str, source: str, tokens: int, wants_token: bool) -> dict[str, Any]:
        """`decode_params` before the prefill has ended: blocks are taken over as they get ready.

        wants_token: the request's last token stands for the prefill engine's first, and is to be put in its place.
        """
        ...

    def peer(self, from_prefill: dict[str, Any]) -> str:
        """How the decode side's connector calls the engine that has the KV."""
        ...

    def unfetched(self, from_prefill: dict[str, Any]) -> str | None:
        """How the prefill engine calls a request of which nothing was fetched, as the decode engine had all of it.

        None where the connector itself lets go of its KV.
        """
        ...

    def reports(self, stats: dict[str, Any]) -> list[TransferReport | Kept]:
        """The transfers in what an engine's connector counted since the last time, and what needed none."""
        ...


# pools: see Pools. why: why it was chosen, from one that chooses.
TRANSFER = Kind("transfer", KVTransfer, given=("pools", "why"))
