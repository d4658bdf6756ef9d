"""What all commands share: refusing bad arguments, reporting errors, and exit codes.

`python -m wp1`, `python -m wp1.report`, ... report an error in one line on standard error. Exit codes: 0 success,
1 failure (WP1Error, OSError, any unexpected error), 2 bad input (ConfigError), 130 Ctrl-C, 141 broken pipe.
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
# The shell's codes for processes ended by SIGINT and SIGPIPE.
INTERRUPTED, NO_READER = 130, 141

# Returns the exit code; None is 0.
Main = Callable[[], int | None]


class Parser(argparse.ArgumentParser):
    """Refuses a bad option in one line, with exit code 2; argparse would print its usage as well."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"error: {message}: see {self.prog} --help\n")


def guarded(main: Main) -> Callable[[], None]:
    """Decorates a command's main: any exception becomes one line and an exit code; raises SystemExit if it is not 0."""

    @functools.wraps(main)
    def command() -> None:
        code = exit_code(main)
        if code:
            sys.exit(code)

    return command


def exit_code(main: Main) -> int:
    """Runs a command and returns its exit code; an error is printed on one line."""
    try:
        try:
            code = main() or 0
        except SystemExit as ended:  # argparse, Hydra
            if isinstance(ended.code, str):
                raise WP1Error(ended.code) from ended
            code = ended.code or 0
        finally:
            # Flush here, where an error can be caught: the interpreter's own flush would print a traceback.
            sys.stdout.flush()
        return code
    except KeyboardInterrupt as stop:
        # It may carry a note to print, as in KeyboardInterrupt("what was measured is kept").
        with suppress(OSError):
            print("; ".join(["interrupted", *map(str, stop.args)]), file=sys.stderr, flush=True)
        return INTERRUPTED
    except BrokenPipeError:
        no_reader()
        return NO_READER
    except Exception as error:
        return say(error)


def say(error: Exception) -> int:
    """Prints an error on one line, without secrets, and returns its exit code."""
    message = str(error) if isinstance(error, (WP1Error, OSError)) else f"{unforeseen(error)}{_place(error)}"
    print("error:", redaction.text(" ".join(message.splitlines())), file=sys.stderr)
    return BAD_INPUT if isinstance(error, ConfigError) else FAILED


def worst(codes: Collection[int]) -> int:
    """The exit code of a command that continues after an error: 1 if anything failed, 2 if only input was bad."""
    return FAILED if FAILED in codes else max(codes, default=0)


def _place(error: Exception) -> str:
    """The line of wp1 that an unexpected error came from, as " (wp1/analysis/report.py:12)"; "" if none."""
    package = Path(__file__).parents[1]
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(package)]
    return f" ({Path(own[-1].filename).relative_to(package.parent)}:{own[-1].lineno})" if own else ""


def no_reader() -> None:
    """Redirects standard output and error to /dev/null, so that flushing their buffers at exit raises no error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(nowhere, number)
    os.close(nowhere)
