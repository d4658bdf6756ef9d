"""What every command shares (`python -m wp1`, `python -m wp1.report`, ...): how it ends, and how it refuses words."""

import argparse
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

# Modules with a `main`: `wp1 report` is `python -m wp1.report`.
NAMES = ("compare", "packet", "peaks", "report", "score", "track")
# The shell's codes for what SIGINT and SIGPIPE end.
INTERRUPTED, NO_READER = 130, 141


class Parser(argparse.ArgumentParser):
    """Refuses a bad option in one line, with exit code 2, where argparse would print its usage as well."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}: see {self.prog} --help\n")


def run(main: Callable[[], None]) -> None:
    """Runs a command to its end. Ctrl-C is one line and exit code 130.

    Where nobody reads what it prints (`| head`), it ends without a word and with exit code 141, as others do.
    """
    try:
        try:
            main()
        finally:
            # Now, while an error can be caught: the interpreter's own flush would print a traceback.
            sys.stdout.flush()
    except KeyboardInterrupt:
        with suppress(OSError):
            print("interrupted", file=sys.stderr, flush=True)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        no_reader()
        sys.exit(NO_READER)


def no_reader() -> None:
    """Points standard output and error to nowhere, so that what is left in their buffers raises no error at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(nowhere, number)
    os.close(nowhere)
