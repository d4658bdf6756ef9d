"""The examples of a run's tasks: prompts that fit the model's length, with everything needed to score the answers."""

import dataclasses
from array import array
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from wp1.core import files
from wp1.core.errors import ConfigError
from wp1.core.plan import Cell
from wp1.core.records import ExampleLine
from wp1.quality import benchmarks, sources
from wp1.quality.benchmarks import Benchmarks
from wp1.quality.book import Passages
from wp1.quality.tasks import Making, Row, Task


@dataclass(frozen=True)
class Example:
    """A prompt, and the row and task by which its answer is scored."""

    task: Task
    row: Row
    prompt: "array[int]"  # token ids
    tokens_before: int  # the prompt's tokens before its middle was cut out

    @property
    def name(self) -> str:
        return f"{self.task.benchmark}/{self.task.name}/{self.row.id}"

    @property
    def label(self) -> str:
        """A readable name: the task and the question."""
        question = " ".join(self.row.question.split())
        return f"{self.task.name}: {question}" if question else f"{self.task.name} {self.row.id}"


@dataclass
class Examples:
    """The examples of each cell, by its name, and where they come from."""

    cells: dict[str, list[Example]]
    source: dict[str, Any] = field(default_factory=dict)  # for run_metadata.json

    @property
    def built_in(self) -> bool:
        """Whether the examples are wp1's variants of known benchmarks rather than the official sets."""
        names = {key.partition("/")[0] for key in self.source["examples"]}
        return self.source["source"] == "builtin" and not names.isdisjoint(benchmarks.own())


def read(cfg: Any, tell: Callable[[str], None]) -> sources.Drawn | None:
    """Draws the rows of a dataset, before the model is loaded. For built-in examples, only checks their files.

    Raises ConfigError if data is missing or bad.
    """
    known, tasks = _chosen(cfg)
    if cfg.dataset.source != "builtin":
        tell(f"reading {cfg.dataset.name}")
        return sources.draw(cfg.dataset, tasks, cfg.seed)
    for name in dict.fromkeys(task.benchmark for task in tasks):
        if (built_in := known[name].built_in) is not None:
            built_in.check_files(cfg.dataset, [task.name for task in tasks if task.benchmark == name])
    return None


def _chosen(cfg: Any) -> tuple[Benchmarks, list[Task]]:
    known = benchmarks.known(cfg.dataset.benchmark)
    return known, benchmarks.chosen(cfg.dataset.tasks, known)


def examples(
    cfg: Any, cells: list[Cell], tokens: Any, tell: Callable[[str], None], drawn: sources.Drawn | None = None
) -> Examples:
    """The examples that a configuration asks for; the same in every arm.

    cells: the cells of one arm. tokens: a `wp1.workload.tokens.ModelTokens`. tell: called with a message before each
    long step. drawn: the result of `read`; None to read now.
    Raises ConfigError if data is missing or bad, or if a task does not fit.
    """
    if cfg.dataset.source == "builtin":
        return _made(cfg, cells, tokens, tell)
    known, tasks = _chosen(cfg)
    drawn = read(cfg, tell) if drawn is None else drawn
    assert drawn is not None
    by_name = {task.name: task for task in tasks}
    tell(f"tokenizing {len(drawn.rows)} prompts")
    prompts = [cut(by_name[row.task], row, tokens, cfg.model.max_len) for row in drawn.rows]
    source = _source(cfg, known, {cells[0].name: prompts}, drawn.digest())
    source |= {"bad_rows": len(drawn.bad), "first_bad": drawn.bad[:5], "rows": drawn.seen}
    return Examples({cell.name: prompts for cell in cells}, source)


def _made(cfg: Any, cells: list[Cell], tokens: Any, tell: Callable[[str], None]) -> Examples:
    """Built-in and generated prompts of each cell's length."""
    known, tasks = _chosen(cfg)
    tell("reading the built-in texts")
    passages = Passages(tokens)
    by_length: dict[int, list[Example]] = {}
    for length in sorted({cell.prompt_len for cell in cells if cell.prompt_len is not None}):
        tell(f"making prompts of {length:,} tokens")
        making = Making(tokens, length, passages, cfg.dataset)
        makers = {
            task.benchmark: built_in.maker(making)
            for task in tasks
            if (built_in := known[task.benchmark].built_in) is not None
        }
        by_length[length] = [
            Example(task, made.row, array("i", made.ids), len(made.ids))
            for task in tasks
            for number in range(cfg.dataset.samples_per_task)
            for made in makers[task.benchmark](task.name, cfg.seed, number)
        ]
    by_cell = {cell.name: by_length[cell.prompt_len] for cell in cells if cell.prompt_len is not None}
    drawn = sources.Drawn([example.row for same_length in by_length.values() for example in same_length])
    return Examples(by_cell, _source(cfg, known, by_cell, drawn.digest()))


def _source(cfg: Any, known: Benchmarks, cells: dict[str, list[Example]], digest: str) -> dict[str, Any]:
    counts: dict[str, int] = {}
    for cell_examples in cells.values():
        for example in cell_examples:
            key = f"{example.task.benchmark}/{example.task.name}"
            counts[key] = counts.get(key, 0) + 1
    source = cfg.dataset.source if cfg.dataset.path is None else "file"
    used = [known[name] for name in dict.fromkeys(key.partition("/")[0] for key in counts)]
    built_in = [one.built_in for one in used if source == "builtin" and one.built_in is not None]
    outside = {one.name: asdict(one.reporting) for one in used if one.name not in benchmarks.own()}
    description = {
        "name": cfg.dataset.name,
        "source": source,
        "from": cfg.dataset.path or cfg.dataset.repo or cfg.dataset.files or "made here",
        "revision": cfg.dataset.revision,
        "digest": digest,
        "examples": counts,
        "bad_rows": 0,
        # Stored with the run, because a later version of wp1 may lay prompts out differently.
        "variant": " ".join(one.variant for one in built_in if one.variant is not None) or None,
    }
    # Stored, because a report made from the folder does not import code that the folder names.
    return description | ({"reporting": outside} if outside else {})


def cut(task: Task, row: Row, tokens: Any, max_len: int) -> Example:
    """A row's example. A prompt that is too long loses its middle, as in LongBench's and InfiniteBench's own code.

    This keeps the instruction at the beginning and the question at the end. A text for perplexity loses its end.
    """
    text = task.prompt(row)
    opening = str(row.extra.get("answer_prefix", "")).strip()
    encode: Callable[[str], list[int]] = (lambda t: tokens.chat(t, opening)) if task.chat else tokens.plain
    ids = encode(text)
    before, room = len(ids), max_len - task.max_tokens
    if task.nll_window is not None:
        ids = ids[:room]
    elif before > room:
        bare = tokens.ids(text)
        keep = room - (before - len(bare))
        while len(ids) > room:
            if keep < 2:
                raise ConfigError(
                    f"{task.name} leaves no room for a prompt: its answers have up to {task.max_tokens} tokens and "
                    f"model.max_len={max_len}; raise it, or leave the task out of dataset.tasks"
                )
            half = keep // 2
            ids = encode(tokens.decode(bare[:half]) + tokens.decode(bare[-half:]))
            # The joined halves may tokenize to a few more tokens.
            keep -= max(1, len(ids) - room)
    return Example(task, row, array("i", ids), before)


def write(path: Path, cells: dict[str, list[Example]]) -> None:
    """Writes examples.jsonl: a line for each example of each cell with what its score needs, without the prompt."""
    with files.replaced(path) as work, work.open("wb") as file:
        for cell, cell_examples in cells.items():
            for example in cell_examples:
                row, task = example.row, example.task
                line = ExampleLine(
                    cell=cell,
                    example=example.name,
                    task=f"{task.benchmark}/{task.name}",
                    category=task.category,
                    metric=task.metric,
                    answers=row.answers,
                    all_classes=row.all_classes,
                    length=row.length,
                    language=row.language,
                    depth=row.extra.get("depth"),
                    groups=list(row.groups),
                    label=example.label,
                    prompt_tokens=len(example.prompt),
                    tokens_before=example.tokens_before,
                )
                file.write(f"{files.json_text(dataclasses.asdict(line))}\n".encode())
