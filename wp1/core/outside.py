"""Imports modules from outside wp1. A configuration is code and may name them; a run's folder is data and may not."""

import importlib
from types import ModuleType

from wp1.core.errors import ConfigError


def imported(setting: str, module: str) -> ModuleType:
    """The module with this dotted name. setting: the one that names it, as `key=value`.

    Raises ConfigError, on one line, if it cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except Exception as error:  # a foreign module may raise anything
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ConfigError(
            f"{setting} cannot be imported ({why}): correct the name, or put the folder of its package on PYTHONPATH"
        ) from error
