"""Exports a KV cache to other processes of this user on this node, and opens one that was exported.

A GPU's memory is shared by CUDA's inter-process handles. On a CPU the tensors move to shared memory, which has no name
and disappears with the last process that maps it. A worker's offer is a JSON file in the run's private folder.
"""

import base64
import json
import mmap
import os
import select
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from wp1.core.errors import WP1Error
from wp1.machine import hardware
from wp1.serving.transfer.ipc.layout import Layout, Region

# Facts that must be equal on both sides, with their names in the error message.
COMPARED = {
    "vllm": "vLLM",
    "model": "model",
    "kv_dtype": "KV data type",  # two 8-bit types have the same layout
    "form": "KV layout",
    "block_tokens": "block size",
    "device": "device",
}

# Upper bound on an offer's bytes. A region takes one row of numbers, and a model of 1,000 layers has 2,000 regions.
MOST_OFFERED = 1 << 22


class PeerError(WP1Error):
    """An engine whose KV cannot be read."""


@dataclass
class Peer:
    """A prefill worker's KV cache, mapped into this process until `close`.

    memory: each storage's bytes, as a read-only array on a CPU and as a torch storage on a GPU.
    """

    engine: str
    mailbox: str
    regions: list[Region]
    num_blocks: int
    memory: list[Any]
    pidfd: int

    def alive(self) -> bool:
        """Whether the peer's process still runs; its memory stays readable either way."""
        ended = select.poll()
        ended.register(self.pidfd, select.POLLIN)
        return not ended.poll(0)

    def close(self) -> None:
        """Unmaps the memory once no other reference is left. All reads must have ended."""
        self.memory.clear()
        os.close(self.pidfd)


def offer(path: Path, layout: Layout, engine: str, mailbox: str, facts: dict[str, Any]) -> None:
    """Makes the cache readable by other processes and writes the offer to `path`.

    facts: values for the keys of `COMPARED`. Raises OSError if there is not enough shared memory.
    """
    for storage in layout.storages:
        if storage.device.type == "cpu" and not storage.is_shared():
            _room_in_shared_memory(storage.nbytes())
    text = json.dumps(
        {
            "engine": engine,
            "mailbox": mailbox,
            "pid": os.getpid(),
            "num_blocks": layout.num_blocks,
            "regions": [[region.storage, region.offset, region.stride, region.size] for region in layout.regions],
            "storages": [_handle(storage) for storage in layout.storages],
            "form": layout.form,
            **facts,
        }
    )
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    fresh.rename(path)


def _room_in_shared_memory(needed: int) -> None:
    free = hardware.free_shared_memory()
    if free < needed:
        raise OSError(
            f"/dev/shm has {free / 2**30:.2f} GiB free and the KV pool needs {needed / 2**30:.2f}: enlarge it, lower "
            "backend.kv_cache_gib, or use transfer=nixl_push"
        )


def _handle(storage: torch.UntypedStorage) -> dict[str, Any]:
    """How another process opens this storage. In this process, the tensors keep working."""
    anything: Any = storage
    if storage.device.type == "cpu":
        fd, size = anything._share_fd_cpu_()
        return {"fd": fd, "size": size}
    # All work that filled the storage ends here, so a reader needs no event of ours, which is the last value.
    torch.cuda.synchronize(storage.device)
    device, *rest, _wait = anything._share_cuda_()
    uuid = str(torch.cuda.get_device_properties(device).uuid)
    return {"gpu": uuid, "cuda": [_encoded(value) for value in rest]}


def _encoded(value: Any) -> Any:
    return {"b64": base64.b64encode(value).decode()} if isinstance(value, bytes) else value


def _decoded(value: Any) -> Any:
    return base64.b64decode(value["b64"]) if isinstance(value, dict) else value


def open_peer(path: Path, facts: dict[str, Any]) -> Peer:
    """Maps the KV cache that a worker offers. Raises PeerError if there is no offer or it does not match our cache."""
    try:
        with path.open(encoding="utf-8") as file:
            offered = json.loads(file.read(MOST_OFFERED))
    except FileNotFoundError as error:
        raise PeerError(f"{path.stem} offers no KV: is it a prefill engine of this run?") from error
    except (ValueError, RecursionError) as error:
        raise PeerError(f"{path} is not a valid offer of KV: {error}") from error
    try:
        return _opened_peer(offered, facts)
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise PeerError(f"{path} is not a valid offer of KV: {error!r}") from error


def _opened_peer(offered: dict[str, Any], facts: dict[str, Any]) -> Peer:
    for key, name in COMPARED.items():
        if offered[key] != facts[key]:
            raise PeerError(
                f"{name} of {offered['engine']} is {offered[key]}, here it is {facts[key]}: both pools need the same"
            )
    regions = [Region(*row) for row in offered["regions"]]
    pidfd = None
    try:
        # Opened before anything is mapped, so that the pid cannot have been reused by another process.
        pidfd = os.pidfd_open(offered["pid"])
        memory = [_opened(handle, offered["pid"]) for handle in offered["storages"]]
        sizes = [one.nbytes if isinstance(one, np.ndarray) else one.nbytes() for one in memory]
        _check_inside(regions, offered["num_blocks"], sizes)
    except BaseException as error:
        if pidfd is not None:
            os.close(pidfd)
        if isinstance(error, OSError):
            raise PeerError(f"{offered['engine']} is gone, or its KV cannot be mapped: {error.strerror}") from error
        raise
    return Peer(offered["engine"], offered["mailbox"], regions, offered["num_blocks"], memory, pidfd)


def _check_inside(regions: list[Region], num_blocks: int, sizes: list[int]) -> None:
    """Raises ValueError if a block would be outside its storage: copies do not check this again."""
    for region in regions:
        end = region.offset + (num_blocks - 1) * region.stride + region.size
        numbers = (region.storage, region.offset, region.stride, region.size, num_blocks - 1)
        if any(type(number) is not int or number < 0 for number in numbers) or end > sizes[region.storage]:
            raise ValueError(f"{region} with {num_blocks} blocks does not fit in its storage")


def _opened(handle: dict[str, Any], pid: int) -> Any:
    if "fd" in handle:
        fd = os.open(f"/proc/{pid}/fd/{handle['fd']}", os.O_RDONLY)
        try:
            return np.frombuffer(mmap.mmap(fd, handle["size"], prot=mmap.PROT_READ), dtype=np.uint8)
        finally:
            os.close(fd)
    ours = torch.cuda.current_device()
    theirs = _index_of(handle["gpu"])
    if theirs != ours and not torch.cuda.can_device_access_peer(ours, theirs):
        raise PeerError(f"GPUs {ours} and {theirs} cannot read each other's memory: use transfer=nixl_push")
    storage: Any = torch.UntypedStorage
    # Opened on our GPU, even if the memory is another's: CUDA gives access to the GPU that opens a handle.
    return storage._new_shared_cuda(ours, *map(_decoded, handle["cuda"]), False)


def _index_of(uuid: str) -> int:
    for index in range(torch.cuda.device_count()):
        if str(torch.cuda.get_device_properties(index).uuid) == uuid:
            return index
    raise PeerError(f"GPU {uuid} of the prefill engine is not visible to this engine")
