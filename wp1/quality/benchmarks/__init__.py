"""The benchmarks: every module here is one, and says all there is to say of it in its `BENCHMARK`."""

import difflib
import importlib
import pkgutil
import re
from collections.abc import Iterable, Mapping
from functools import cache

from wp1.core.errors import ConfigError
from wp1.core.outside import imported
from wp1.quality.tasks import Benchmark, Task

Benchmarks = Mapping[str, Benchmark]


@cache
def own() -> Benchmarks:
    """wp1's own benchmarks by name."""
    modules = (importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__))
    return {module.BENCHMARK.name: module.BENCHMARK for module in modules}


def known(module: str | None, key: str = "dataset.benchmark") -> Benchmarks:
    """wp1's own benchmarks, and one from outside: that of a module, by the name that Python imports it by.

    key: what the module was named by. Raises ConfigError if it cannot be imported or has no benchmark.
    """
    if module is None:
        return own()
    said = f"{key}={module}"
    found = getattr(imported(said, module), "BENCHMARK", None)
    if not isinstance(found, Benchmark):
        raise ConfigError(f"{said} has no BENCHMARK of the class wp1.quality.tasks.Benchmark: add one")
    if not re.fullmatch(r"\w[\w.-]*", found.name):
        raise ConfigError(f"{said}: its name {found.name!r} is no name: use letters, digits, '_', '-' and '.'")
    if own().get(found.name, found) is not found:
        raise ConfigError(f"{said} is called {found.name}, as one of wp1's own is: give it another name")
    return {**own(), found.name: found}


def find(name: str, among: Benchmarks | None = None) -> Task:
    """A task by its name, alone (`hotpotqa`) or with its benchmark (`longbench/hotpotqa`).

    among: None for wp1's own. Raises ConfigError, naming near ones, if there is none.
    """
    among = own() if among is None else among
    of, _, short = name.rpartition("/")
    for benchmark in among.values():
        if of in ("", benchmark.name) and short in benchmark.names:
            return benchmark.task(short)
    names = [f"{benchmark.name}/{task}" for benchmark in among.values() for task in benchmark.names]
    near = difflib.get_close_matches(name, [*names, *(task.partition("/")[2] for task in names)], n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names)}"
    raise ConfigError(f"there is no task {name}: {hint}")


def subsets(among: Benchmarks) -> dict[str, tuple[str, ...]]:
    """The tasks, with their benchmark, that each subset's name stands for in `dataset.tasks`."""
    return {
        f"{one.name}_subset": tuple(f"{one.name}/{task}" for task in one.built_in.tasks)
        for one in among.values()
        if one.built_in is not None
    }


def chosen(tasks: Iterable[str], among: Benchmarks) -> list[Task]:
    """The tasks that `dataset.tasks` names, with each subset's name replaced by its tasks; every name once.

    Raises ConfigError as `find`.
    """
    of = subsets(among)
    names = dict.fromkeys(name for task in tasks for name in of.get(task, (task,)))
    return [find(name, among) for name in names]
