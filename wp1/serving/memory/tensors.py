"""The memory behind tensors: each storage counts once, however many tensors are views of it."""

from collections.abc import Iterable
from typing import Any

import torch

Range = tuple[int, int]  # address, bytes


def storages(values: Iterable[Any]) -> list[torch.UntypedStorage]:
    """The storages of all tensors in `values`, which may be nested lists, tuples and dicts."""
    by_address: dict[int, torch.UntypedStorage] = {}
    todo = list(values)
    while todo:
        value = todo.pop()
        if isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            if storage.nbytes():
                by_address[storage.data_ptr()] = storage
        elif isinstance(value, list | tuple):
            todo += value
        elif isinstance(value, dict):
            todo += value.values()
    return list(by_address.values())


def of_module(module: torch.nn.Module) -> list[torch.UntypedStorage]:
    """The storages of a module's parameters and buffers."""
    return storages([*module.parameters(), *module.buffers()])


def ranges(storages: Iterable[torch.UntypedStorage]) -> list[Range]:
    """The address ranges of storages."""
    return [(storage.data_ptr(), storage.nbytes()) for storage in storages]


def nbytes(storages: Iterable[torch.UntypedStorage]) -> int:
    """Total bytes of storages."""
    return sum(storage.nbytes() for storage in storages)
