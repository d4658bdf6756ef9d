"""wp1 measures long-context serving on vLLM. Start with `python -m wp1 --help`."""

import sys
from types import TracebackType

__version__ = "0.1.0"


def _interrupted(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    """Reports Ctrl-C on one line and passes every other error on."""
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, where)


# `python -m wp1.report` and the like import this package first. That takes a second, during which only this hook
# catches a Ctrl-C; later `wp1.core.command.guarded` does.
if sys.argv[:1] == ["-m"]:
    sys.excepthook = _interrupted
