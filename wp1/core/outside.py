"""Modules from outside wp1, which a configuration may name: it is code. A run's folder is data, and may not."""

import importlib
from types import ModuleType

from wp1.core.errors import ConfigError


def imported(said: str, module: str) -> ModuleType:
    """The module of this dotted name. said: the setting that names it, as `key=value`.

    Raises ConfigError, in one line, if it cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except Exception as error:  # anything may go wrong in a module of somebody else's
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ConfigError(
            f"{said} cannot be imported ({why}): correct the name, or put the folder of its package on PYTHONPATH"
        ) from error
