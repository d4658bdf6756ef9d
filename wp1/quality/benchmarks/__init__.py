"""The benchmarks: every module here is one, and declares it in full in its `BENCHMARK`."""

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
    modules = (importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__))
    return {module.BENCHMARK.name: module.BENCHMARK for module in modules}


def known(module: str | None, key: str = "dataset.benchmark") -> Benchmarks:
    """wp1's own benchmarks, and the one of a module from outside, given by its import name.

    key: the setting that names the module. Raises ConfigError if it cannot be imported or has no benchmark.
    """
    if module is None:
        return own()
    setting = f"{key}={module}"
    benchmark = getattr(imported(setting, module), "BENCHMARK", None)
    if not isinstance(benchmark, Benchmark):
        raise ConfigError(f"{setting} has no BENCHMARK of the class wp1.quality.tasks.Benchmark: add one")
    if not re.fullmatch(r"\w[\w.-]*", benchmark.name):
        raise ConfigError(
            f"{setting}: the benchmark's name {benchmark.name!r} is invalid: use letters, digits, '_', '-' and '.'"
        )
    if own().get(benchmark.name, benchmark) is not benchmark:
        raise ConfigError(f"{setting}: wp1 already has a benchmark named {benchmark.name}: give yours another name")
    return {**own(), benchmark.name: benchmark}


def find(name: str, among: Benchmarks | None = None) -> Task:
    """A task by its name (`hotpotqa`), or by benchmark and name (`longbench/hotpotqa`).

    among: None for wp1's own benchmarks. Raises ConfigError, naming similar tasks, if there is none.
    """
    among = own() if among is None else among
    owner, _, short = name.rpartition("/")
    for benchmark in among.values():
        if owner in ("", benchmark.name) and short in benchmark.names:
            return benchmark.task(short)
    names = [f"{benchmark.name}/{task}" for benchmark in among.values() for task in benchmark.names]
    near = difflib.get_close_matches(name, [*names, *(task.partition("/")[2] for task in names)], n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names)}"
    raise ConfigError(f"there is no task {name}: {hint}")


def subsets(among: Benchmarks) -> dict[str, tuple[str, ...]]:
    """Subset name in `dataset.tasks` -> its tasks, as BENCHMARK/TASK."""
    return {
        f"{one.name}_subset": tuple(f"{one.name}/{task}" for task in one.built_in.tasks)
        for one in among.values()
        if one.built_in is not None
    }


def chosen(tasks: Iterable[str], among: Benchmarks) -> list[Task]:
    """The tasks that `dataset.tasks` names, with each subset replaced by its tasks; every name once.

    Raises ConfigError as `find` does.
    """
    tasks_of = subsets(among)
    names = dict.fromkeys(name for task in tasks for name in tasks_of.get(task, (task,)))
    return [find(name, among) for name in names]
