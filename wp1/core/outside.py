"""Imports modules from outside wp1. A configuration is code and may name them; a run's folder is data and may not."""

import importlib
from types import ModuleType
from typing import Any

from wp1.core.errors import ConfigError, unforeseen


def imported(setting: str, module: str) -> ModuleType:
    """The module with this dotted name. setting: the one that names it, as `key=value`.

    Raises ConfigError, on one line, if it cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except Exception as error:  # a foreign module may raise anything
        raise ConfigError(
            f"{setting} cannot be imported ({unforeseen(error)}): correct the name, or put the folder of its package "
            "on PYTHONPATH"
        ) from error


def named(setting: str, name: Any, not_dotted: str) -> Any:
    """What a dotted name, package.module.attribute, stands for; None if its module has no such attribute.

    setting: as in `imported`. not_dotted: what is wrong with any other name, for the message after `setting`.
    Raises ConfigError, on one line, if the name is not dotted or its module cannot be imported.
    """
    module, _, attribute = name.rpartition(".") if isinstance(name, str) else ("", "", "")
    if not module:
        raise ConfigError(f"{setting} {not_dotted}")
    return getattr(imported(setting, module), attribute, None)
