"""Redirects this process's standard output and error."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from wp1.core import files


@contextmanager
def output_to(log: Path) -> Iterator[None]:
    """Context that redirects standard output and error of this process, and of processes it starts, to a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    target = os.open(log, os.O_WRONLY) if log == Path(os.devnull) else files.log_descriptor(log)
    try:
        os.dup2(target, 1)
        os.dup2(target, 2)
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            # A full disk must not prevent the terminal from being restored.
            with suppress(OSError):
                stream.flush()
        for number, copy in zip((1, 2), saved, strict=True):
            os.dup2(copy, number)
            os.close(copy)
        os.close(target)
