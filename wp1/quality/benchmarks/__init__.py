"""The benchmarks, one module each."""

from typing import Any

from wp1.core.errors import ConfigError
from wp1.quality.tasks import Task


def benchmarks() -> dict[str, Any]:
    """The modules of all benchmarks by name; each has `names()` and `task(name)`."""
    from wp1.quality.benchmarks import infinitebench, longbench, longbench_v2, pg19, ruler

    return {module.NAME: module for module in (longbench, longbench_v2, infinitebench, ruler, pg19)}


def find(name: str) -> Task:
    """A task by its name, alone (`hotpotqa`) or with its benchmark (`longbench/hotpotqa`).

    Raises ConfigError, naming near ones, where there is none.
    """
    import difflib

    of, _, short = name.rpartition("/")
    for benchmark, module in benchmarks().items():
        if of in ("", benchmark) and short in module.names():
            return module.task(short)
    known = [f"{benchmark}/{task}" for benchmark, module in benchmarks().items() for task in module.names()]
    near = difflib.get_close_matches(name, [*known, *(task.partition("/")[2] for task in known)], n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(known)}"
    raise ConfigError(f"there is no task {name}: {hint}")
