"""The memory behind tensors: storages, each once however many tensors look into it."""

from collections.abc import Iterable
from typing import Any

import torch

Range = tuple[int, int]  # address, bytes


def storages(values: Iterable[Any]) -> list[torch.UntypedStorage]:
    """The storages of all tensors in `values`, which may be nested lists, tuples and dicts."""
    found: dict[int, torch.UntypedStorage] = {}
    todo = list(values)
    while todo:
        value = todo.pop()
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            if storage.nbytes():
                found[storage.data_ptr()] = storage
        elif isinstance(value, list | tuple):
            todo += value
        elif isinstance(value, dict):
            todo += value.values()
    return list(found.values())


def of_module(module: torch.nn.Module) -> list[torch.UntypedStorage]:
    """The storages of a module's parameters and buffers."""
    return storages([*module.parameters(), *module.buffers()])


def ranges(found: Iterable[torch.UntypedStorage]) -> list[Range]:
    """Where storages lie."""
    return [(storage.data_ptr(), storage.nbytes()) for storage in found]


def nbytes(found: Iterable[torch.UntypedStorage]) -> int:
    """Bytes of storages."""
    return sum(storage.nbytes() for storage in found)
