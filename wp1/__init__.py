"""wp1 measures long-context serving on vLLM. Start with `python -m wp1 --help`."""

import sys
from types import TracebackType

__version__ = "0.1.0"


def _interrupted(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    """Reports Ctrl-C on one line and leaves every other error as it is."""
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, where)


# `python -m wp1.report` and the like import this package before the module itself: that takes a second, in which
# nothing else would catch a Ctrl-C (`wp1.core.command.guarded` does later).
if sys.argv[:1] == ["-m"]:
    sys.excepthook = _interrupted
