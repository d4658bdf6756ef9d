"""What a task is, and where to find one by name."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


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
