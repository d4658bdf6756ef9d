"""Chooses the connector: `ipc`, as all engines are on one node, unless something rules it out."""

from typing import Any

from wp1.serving.transfer import KVTransfer, Pools
from wp1.serving.transfer.ipc import IpcTransfer, obstacle
from wp1.serving.transfer.nixl import NixlTransfer


def choose(
    *, name: str, pools: Pools, direction: str, overlap: str, at_once_mib: float, verify: bool, **settings: Any
) -> KVTransfer:
    """Returns `ipc` or NIXL's connector, with the reason. `name`: the configured name, for that reason."""
    reason = obstacle(pools)
    if reason is None:
        why = f"{name}: all engines are on this node, where KV moves at the speed of its memory"
        return IpcTransfer(
            name="ipc", pools=pools, overlap=overlap, at_once_mib=at_once_mib, verify=verify, why=why, **settings
        )
    why = f"{name}: not ipc, as {reason}"
    return NixlTransfer(name=f"nixl_{direction}", pools=pools, direction=direction, why=why, **settings)
