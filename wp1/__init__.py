"""wp1 measures long-context serving on vLLM. Start with `python -m wp1 --help`."""

import sys
from types import TracebackType

__version__ = "0.1.0"


def _interrupted(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    """Says Ctrl-C in one line, and every other error as ever."""
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, where)


# Of `python -m wp1.report` and the like, before the module itself is imported: that takes a second, in which nothing
# else would catch a Ctrl-C (`wp1.core.command.run` does later).
if sys.argv[:1] == ["-m"]:
    sys.excepthook = _interrupted
