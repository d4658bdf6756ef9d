"""What a task is, and where to find one by name."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from wp1.core.errors import ConfigError


@dataclass(frozen=True)
class Row:
    """One example, whatever benchmark it is from. What only one benchmark has is in `extra`."""

    id: str
    task: str
    context: str = ""
    question: str = ""
    answers: list[Any] = field(default_factory=list)
    choices: list[str] = field(default_factory=list)
    all_classes: list[str] = field(default_factory=list)
    length: int | None = None  # as the set states it, in its own unit
    language: str = "en"
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """A task of a benchmark: how it asks, how much may be answered, and how an answer is scored."""

    name: str  # as its authors call it
    benchmark: str
    category: str
    max_tokens: int
    prompt: Callable[[Row], str]
    score: Callable[[str, Row], float]  # of a prediction, in 0..1
    chat: bool = True  # False: asked without the chat template
    stop: tuple[str, ...] = ()
    metric: str = "accuracy"


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
