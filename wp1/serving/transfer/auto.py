"""Chooses the connector: `ipc`, as all engines are on one node, unless something rules it out."""

from typing import Annotated, Any, Literal

from wp1.core.parts import Within
from wp1.serving.transfer import KVTransfer, Pools
from wp1.serving.transfer.ipc import IpcTransfer, obstacle
from wp1.serving.transfer.nixl import NixlTransfer


def choose(
    *,
    name: str,
    pools: Pools,
    timeout_s: Annotated[float, Within(0.001)] = 60.0,
    direction: Literal["pull", "push"],
    overlap: Literal["on", "off"],
    at_once_mib: Annotated[float, Within(0)],
    verify: bool,
    environment: dict[str, str],
    extra: dict[str, Any],
) -> KVTransfer:
    """Returns `ipc` or NIXL's connector, with the reason. `name`: the configured name, for that reason."""
    reason = obstacle(pools)
    if reason is None:
        why = f"{name}: all engines are on this node, where KV moves at the speed of its memory"
        return IpcTransfer(
            name="ipc",
            pools=pools,
            timeout_s=timeout_s,
            overlap=overlap,
            at_once_mib=at_once_mib,
            verify=verify,
            why=why,
        )
    why = f"{name}: not ipc, as {reason}"
    return NixlTransfer(
        name=f"nixl_{direction}",
        pools=pools,
        timeout_s=timeout_s,
        direction=direction,
        environment=environment,
        extra=extra,
        why=why,
    )
