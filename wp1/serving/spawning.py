"""Engines that start side by side, each with variables of its own in the environment of its processes.

vLLM reads an engine's devices from the environment and spawns its processes with the environment of this one. So only
the moments until an engine's process is spawned are taken in turn, not the half minute in which it gets ready.
"""

import multiprocessing
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_turn = threading.Lock()
POLL_S = 0.02


@contextmanager
def spawning(environment: dict[str, str]) -> Iterator[None]:
    """The body starts one engine; it runs alone until it has spawned its first process, or ended.

    For threads; `environment` is in os.environ for just that long.
    """
    _turn.acquire()
    before = {name: os.environ.get(name) for name in environment}
    known = set(multiprocessing.active_children())
    os.environ.update(environment)
    body_ended = threading.Event()

    def give_up_turn_when_spawned() -> None:
        # Other engines cannot spawn now, so a new child is ours; it is listed once it has its environment.
        while not body_ended.is_set() and not set(multiprocessing.active_children()) - known:
            body_ended.wait(POLL_S)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        _turn.release()

    watching = threading.Thread(target=give_up_turn_when_spawned, daemon=True)
    watching.start()
    try:
        yield
    finally:
        body_ended.set()
        watching.join()
