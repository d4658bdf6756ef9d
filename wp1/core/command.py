"""What every command shares: how it refuses words, how it ends, and its exit code.

`python -m wp1`, `python -m wp1.report`, ... say what went wrong in one line on standard error. Exit codes: 0 done,
1 failed (WP1Error, OSError, anything unforeseen), 2 bad input (ConfigError), 130 Ctrl-C, 141 nobody reads the output.
"""

import argparse
import functools
import os
import sys
import traceback
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from wp1.core import redaction
from wp1.core.errors import ConfigError, WP1Error, unforeseen

# Modules with a `main`: `wp1 report` is `python -m wp1.report`.
NAMES = ("compare", "packet", "peaks", "report", "score", "track")
FAILED, BAD_INPUT = 1, 2
# The shell's codes for what SIGINT and SIGPIPE end.
INTERRUPTED, NO_READER = 130, 141

# Returns the exit code; None is 0.
Main = Callable[[], int | None]


class Parser(argparse.ArgumentParser):
    """Refuses a bad option in one line, with exit code 2; argparse would print its usage as well."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"error: {message}: see {self.prog} --help\n")


def guarded(main: Main) -> Callable[[], None]:
    """Decorates a command's main: whatever it raises becomes one line and an exit code, and SystemExit if not 0."""

    @functools.wraps(main)
    def command() -> None:
        code = exit_code(main)
        if code:
            sys.exit(code)

    return command


def exit_code(main: Main) -> int:
    """Runs a command and returns its exit code, after saying in one line what went wrong."""
    try:
        try:
            code = main() or 0
        except SystemExit as ended:  # argparse, Hydra
            if isinstance(ended.code, str):
                raise WP1Error(ended.code) from ended
            code = ended.code or 0
        finally:
            # Now, while an error can be caught: the interpreter's own flush would print a traceback.
            sys.stdout.flush()
        return code
    except KeyboardInterrupt as stop:
        # It may carry what to add, as in KeyboardInterrupt("what was measured is kept").
        with suppress(OSError):
            print("; ".join(["interrupted", *map(str, stop.args)]), file=sys.stderr, flush=True)
        return INTERRUPTED
    except BrokenPipeError:
        no_reader()
        return NO_READER
    except Exception as error:
        return say(error)


def say(error: Exception) -> int:
    """Prints what went wrong in one line, without secrets, and returns its exit code."""
    message = str(error) if isinstance(error, (WP1Error, OSError)) else f"{unforeseen(error)}{_place(error)}"
    print("error:", redaction.text(" ".join(message.splitlines())), file=sys.stderr)
    return BAD_INPUT if isinstance(error, ConfigError) else FAILED


def worst(codes: Collection[int]) -> int:
    """The exit code of a command that goes on after an error: 1 if anything failed, 2 if only input was bad."""
    return FAILED if FAILED in codes else max(codes, default=0)


def _place(error: Exception) -> str:
    """Where in wp1 an unforeseen error was raised, as " (wp1/analysis/report.py:12)"; "" if elsewhere."""
    package = Path(__file__).parents[1]
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(package)]
    return f" ({Path(own[-1].filename).relative_to(package.parent)}:{own[-1].lineno})" if own else ""


def no_reader() -> None:
    """Points standard output and error to nowhere, so that what is left in their buffers raises no error at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(nowhere, number)
    os.close(nowhere)
