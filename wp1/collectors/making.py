"""Collectors made from a configuration, or from a run's folder."""

from typing import Any

from wp1.collectors import Collector
from wp1.core import targets
from wp1.core.errors import ConfigError
from wp1.core.run_folder import RunFolder


def collectors_of(config: dict[str, Any]) -> list[Collector]:
    """The collectors that a configuration names, by `_target_`. Raises ConfigError for one that cannot be made."""
    made = []
    for name, part in (config["collectors"] or {}).items():
        if (wrong := targets.wrong_collector(part)) is not None:
            raise ConfigError(f"collectors.{name} {wrong}: set it as in conf/collectors/, or drop it")
        try:
            made.append(targets.partial(part)())
        except (ValueError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"collectors.{name} cannot be made ({reason}): see conf/collectors/") from error
    return made


def collectors_in(run: RunFolder) -> list[Collector]:
    """The collectors that a run's folder names, less those that are none of wp1's, which its report names.

    Such a name may be of another version, or be there to run something on the machine of whoever reads the folder.
    Raises ConfigError as `collectors_of` does.
    """
    known = {name: part for name, part in (run.config["collectors"] or {}).items() if not targets.wrong_collector(part)}
    return collectors_of({"collectors": known})
