"""Settings that a source of prompts or an arrival process adds to the keys of `workload`.

They are the parameters of the source's `__init__` or of the process's function, with their types, bounds and defaults
(`wp1.core.parts`), and are set beside the keys that every workload has: `workload.count_from=3`. A parameter with the
name of such a key receives that key's value.
"""

from collections.abc import Callable, Mapping
from typing import Any

from omegaconf import OmegaConf

from wp1.core import parts
from wp1.core.errors import ConfigError

Part = Callable[..., Any]


def declared(part: Part, given: tuple[str, ...] = ()) -> dict[str, parts.Setting]:
    """The settings of a source's class or a process's function, by name. given: parameters that wp1 fills in."""
    return parts.settings_of("workload", part, parts.Kind("workload", object, given))


def values(part: Part, workload: Any, given: tuple[str, ...] = ()) -> dict[str, Any]:
    """The values of these settings in a resolved `workload` group, as plain objects."""
    found = {name: workload[name] for name in declared(part, given) if name in workload}
    return {name: OmegaConf.to_container(one) if OmegaConf.is_config(one) else one for name, one in found.items()}


def typed(workload: Mapping[str, Any], common: Mapping[str, Any], settings: list[parts.Setting]) -> dict[str, Any]:
    """The keys of `workload` that are not common ones, complete and converted to their types.

    workload: the group as it was composed. common: the keys that every workload has, with their defaults.
    settings: those of the source and of the arrival process.
    Raises ConfigError, in one line that names the key, for one that is unknown, missing or of the wrong type.
    """
    known = dict.fromkeys([*common, *(setting.name for setting in settings)])
    for name in sorted(str(name) for name in workload if name not in known):
        message = parts.unknown_key(f"workload.{name}", [f"workload.{one}" for one in known])
        if not message.endswith("?"):  # no key is near
            added = ", ".join(setting.name for setting in settings) or "no keys"
            message += f"; {workload.get('prompts')} prompts and {workload.get('arrivals')} arrivals add {added}"
        raise ConfigError(message)
    found = {}
    for setting in settings:
        key, name = f"workload.{setting.name}", setting.name
        value = workload.get(name, common.get(name, setting.default))
        if value is parts.NOTHING or value == "???":
            raise ConfigError(f"{key} has no value: set {key}=...")
        if name in workload or parts.is_plain(value):
            converted = parts.converted(key, value, setting.type)
            if name not in common:
                found[name] = converted
    return found
