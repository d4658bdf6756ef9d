"""How KV blocks get from a prefill engine to a decode engine: the interface of a connector to the scheduler.

A new connector is a module here with a class like this, and a file in conf/transfer/. The part that runs inside the
engines' own processes (the connector that vLLM loads) imports vllm, so it has a module of its own.
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
    """One finished transfer on one tensor-parallel rank, as the connector saw it; times are monotonic seconds."""

    handoff_id: str
    t_begin: float
    t_end: float
    bytes: int | None  # None: the connector cannot tell how many bytes it moved
    failed: str | None = None  # the reason, if the KV did not arrive
    # If the connector knows: seconds in which bytes moved, by the device's clock; seconds for which ready blocks waited
    # to be moved; number of blocks; number of runs of adjacent blocks.
    copy_s: float | None = None
    wait_s: float | None = None
    blocks: int | None = None
    runs: int | None = None


@dataclass(frozen=True, slots=True)
class Kept:
    """A decode engine's report before a transfer: the first `tokens` of the prompt need not be fetched.

    They are whole blocks that vLLM's scheduler found in the engine's own prefix cache, or all tokens of the prompt if
    the engine also has the rest or computes it itself.
    """

    handoff_id: str
    tokens: int


# Keys in an engine's connector stats, for rows of TransferReport and of Kept.
MOVED_ROWS = "wp1_transfers"
KEPT_ROWS = "wp1_kept"


def reports_in(stats: dict[str, Any]) -> "list[TransferReport | Kept]":
    """The reports in the stats of either of wp1's connectors. `Kept` comes first, as it is known first."""
    kept = [Kept(*row) for row in stats.get(KEPT_ROWS, ())]
    return [*kept, *(TransferReport(*row) for row in stats.get(MOVED_ROWS, ()))]


class KVTransfer(Protocol):
    """Settings of a connector for both ends, and what it says of each transfer. Cheap; no engine, no vllm."""

    name: str
    timeout_s: float
    # Whether blocks can move while the rest of their prompt is being computed, which needs `early_params`.
    overlap: bool
    # A class that vLLM mixes into its workers, with `wp1_meet(engines)` and `wp1_peer_lost(engine)`.
    worker_extension: str

    def why(self) -> str:
        """Why this connector was chosen, for run_metadata.json."""
        ...

    def engine_arguments(self) -> dict[str, Any]:
        """Arguments of vLLM's engine that this connector needs."""
        ...

    def engine_settings(self, role: Role, engine: str, lease_s: float) -> dict[str, Any]:
        """Fields of vLLM's KVTransferConfig for the engine with this name; to be called once for each engine.

        lease_s: seconds for which a prefill engine keeps KV that is not fetched.
        """
        ...

    def prefill_params(self, handoff_id: str, target: str | None) -> dict[str, Any]:
        """`kv_transfer_params` of a request whose KV is to be kept until it is fetched.

        target: the decode engine that was sent `early_params` for it, or None.
        """
        ...

    def decode_params(self, from_prefill: dict[str, Any], tokens: int) -> dict[str, Any]:
        """`kv_transfer_params` of the request that fetches the KV of `tokens` tokens."""
        ...

    def early_params(self, handoff_id: str, source: str, tokens: int, wants_token: bool) -> dict[str, Any]:
        """Like `decode_params`, but before the prefill has ended: blocks are fetched as they become ready.

        wants_token: the request's last token is a placeholder, to be replaced by the prefill engine's first token.
        """
        ...

    def peer(self, from_prefill: dict[str, Any]) -> str:
        """The decode connector's name for the engine that has the KV."""
        ...

    def unfetched(self, from_prefill: dict[str, Any]) -> str | None:
        """The prefill engine's name for a request whose KV was not fetched, because the decode engine had all of it.

        None if the connector releases such KV by itself.
        """
        ...

    def reports(self, stats: dict[str, Any]) -> list[TransferReport | Kept]:
        """The transfers in an engine's connector stats since the last call, and the tokens that needed none."""
        ...


# pools: see Pools. why: why it was chosen, from one that chooses.
TRANSFER = Kind("transfer", KVTransfer, given=("pools", "why"))
