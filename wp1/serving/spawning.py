"""Lets engines start side by side, each with its own environment variables.

vLLM reads an engine's devices from the environment, and its processes inherit the environment of this one. So engines
take turns only until their process is spawned; the half minute in which they get ready overlaps.
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
    """Context for starting one engine: no other thread's body runs until this one spawned a process, or ended.

    `environment` is in os.environ for just that time.
    """
    _turn.acquire()
    before = {name: os.environ.get(name) for name in environment}
    known = set(multiprocessing.active_children())
    os.environ.update(environment)
    body_ended = threading.Event()

    def give_up_turn_when_spawned() -> None:
        # Other engines cannot spawn now, so a new child is ours. When it is listed, it already has its environment.
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
