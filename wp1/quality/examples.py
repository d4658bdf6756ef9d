"""What a run asks: examples of every task, as prompts within the model's length, with all that their scores need."""

import dataclasses
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wp1.core import files
from wp1.core.errors import ConfigError
from wp1.core.plan import Cell
from wp1.core.records import ExampleLine
from wp1.quality import builtin, sources
from wp1.quality.benchmarks import find, longbench, pg19, ruler
from wp1.quality.book import Passages
from wp1.quality.ruler_prompts import RulerPrompts, qa_set
from wp1.quality.tasks import Row, Task

# Tokens over which a prompt's log-likelihood is summed up.
NLL_WINDOW = 128


@dataclass(frozen=True)
class Example:
    """One thing that is asked, and what its answer is judged by."""

    task: Task
    row: Row
    prompt: "array[int]"  # token ids
    tokens_before: int  # of the prompt, before its middle was taken out

    @property
    def name(self) -> str:
        return f"{self.task.benchmark}/{self.task.name}/{self.row.id}"

    @property
    def nll_window(self) -> int | None:
        """Tokens a window of the prompt's log-likelihood, where that is wanted."""
        return NLL_WINDOW if self.task.name == pg19.TASKS[0] else None

    @property
    def label(self) -> str:
        """What a person would call it."""
        question = " ".join(self.row.question.split())
        return f"{self.task.name}: {question}" if question else f"{self.task.name} {self.row.id}"


@dataclass
class Asked:
    """The examples of each cell by its name, and how they were come by."""

    cells: dict[str, list[Example]]
    source: dict[str, Any] = field(default_factory=dict)  # for run_metadata.json


def read(cfg: Any, tell: Callable[[str], None]) -> sources.Drawn | None:
    """The rows of a set that is drawn, before there is a model; of one that is made here its files are checked.

    Raises ConfigError where data is missing or bad.
    """
    tasks = [find(name) for name in builtin.expanded(list(cfg.dataset.tasks))]
    if cfg.dataset.source != "builtin":
        tell(f"reading {cfg.dataset.name}")
        return sources.draw(cfg.dataset, tasks, cfg.seed)
    for name, path in _files(cfg.dataset).items():
        if any(task.name == name for task in tasks):
            qa_set(name, path)
    return None


def _files(dataset: Any) -> dict[str, Path]:
    """The files of RULER's questions by task."""
    named = (("qa_1", dataset.squad), ("qa_2", dataset.hotpot))
    return {name: Path(path).expanduser() for name, path in named if path}


def examples(
    cfg: Any, cells: list[Cell], tokens: Any, tell: Callable[[str], None], drawn: sources.Drawn | None = None
) -> Asked:
    """The examples that a configuration asks for; the same ones in every arm.

    cells: of one arm. tokens: a `wp1.workload.tokens.ModelTokens`. tell: is told what takes long. drawn: what `read`
    found; None: it is read now.
    Raises ConfigError where data is missing or bad, or a task does not fit.
    """
    tasks = [find(name) for name in builtin.expanded(list(cfg.dataset.tasks))]
    if cfg.dataset.source == "builtin":
        return _made(cfg, cells, tasks, tokens, tell)
    drawn = read(cfg, tell) if drawn is None else drawn
    assert drawn is not None
    of = {task.name: task for task in tasks}
    tell(f"tokenizing {len(drawn.rows)} prompts")
    asked = [cut(of[row.task], row, tokens, cfg.model.max_len) for row in drawn.rows]
    source = _source(cfg, {cells[0].name: asked}, drawn.digest())
    source |= {"bad_rows": len(drawn.bad), "first_bad": drawn.bad[:5], "rows": drawn.seen}
    return Asked({cell.name: asked for cell in cells}, source)


def _made(cfg: Any, cells: list[Cell], tasks: list[Task], tokens: Any, tell: Callable[[str], None]) -> Asked:
    """Built-in and generated prompts, of each cell's length."""
    tell("reading the built-in texts")
    passages = Passages(tokens)
    qa = _files(cfg.dataset)
    by_length: dict[int, list[Example]] = {}
    for length in sorted({cell.prompt_len for cell in cells if cell.prompt_len is not None}):
        tell(f"making prompts of {length:,} tokens")
        rulers, others = RulerPrompts(tokens, length, passages, qa), builtin.BuiltinPrompts(tokens, length, passages)
        by_length[length] = []
        for task in tasks:
            depths = cfg.dataset.depths if cfg.dataset.depths and task.name in ruler.NEEDLES else [None]
            for number in range(cfg.dataset.samples_per_task):
                for depth in depths:
                    if task.benchmark == ruler.NAME:
                        made = rulers.make(task.name, cfg.seed, number, depth)
                    else:
                        made = others.make(f"{task.benchmark}/{task.name}", cfg.seed, number)
                    by_length[length].append(Example(task, made.row, array("i", made.ids), len(made.ids)))
    found = {cell.name: by_length[cell.prompt_len] for cell in cells if cell.prompt_len is not None}
    drawn = sources.Drawn([example.row for asked in by_length.values() for example in asked])
    return Asked(found, _source(cfg, found, drawn.digest()))


def _source(cfg: Any, cells: dict[str, list[Example]], digest: str) -> dict[str, Any]:
    counts: dict[str, int] = {}
    for asked in cells.values():
        for example in asked:
            key = f"{example.task.benchmark}/{example.task.name}"
            counts[key] = counts.get(key, 0) + 1
    source = cfg.dataset.source if cfg.dataset.path is None else "file"
    made = source == "builtin" and any(name.startswith(f"{ruler.NAME}/") for name in counts)
    return {
        "name": cfg.dataset.name,
        "source": source,
        "from": cfg.dataset.path or cfg.dataset.repo or cfg.dataset.files or "made here",
        "revision": cfg.dataset.revision,
        "digest": digest,
        "examples": counts,
        "bad_rows": 0,
        # Of the run, not of the code that makes its report again: prompts of older runs were laid out otherwise.
        "variant": ruler.VARIANT if made else None,
    }


def cut(task: Task, row: Row, tokens: Any, max_len: int) -> Example:
    """The prompt of a row; one that is too long loses its middle, as LongBench's and InfiniteBench's own code has it.

    The question stands at the end and the instruction at the beginning; both stay. A text for perplexity loses its end.
    """
    text = task.prompt(row)
    opening = str(row.extra.get("answer_prefix", "")).strip()
    encode: Callable[[str], list[int]] = (lambda t: tokens.chat(t, opening)) if task.chat else tokens.plain
    ids = encode(text)
    before, room = len(ids), max_len - task.max_tokens
    if task.name == pg19.TASKS[0]:
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
            # What is cut apart may take a few tokens more when put together.
            keep -= max(1, len(ids) - room)
    return Example(task, row, array("i", ids), before)


def write(path: Path, cells: dict[str, list[Example]]) -> None:
    """examples.jsonl: a line for each example of each cell with what its score needs, and not its text."""
    with files.replaced(path) as work, work.open("wb") as file:
        for cell, asked in cells.items():
            for example in asked:
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
                    difficulty=row.extra.get("difficulty"),
                    length_group=_length_group(task, row),
                    label=example.label,
                    prompt_tokens=len(example.prompt),
                    tokens_before=example.tokens_before,
                )
                file.write(f"{files.json_text(dataclasses.asdict(line))}\n".encode())


def _length_group(task: Task, row: Row) -> str | None:
    """LongBench-E's, or as LongBench v2 states it."""
    if task.benchmark == longbench.NAME:
        return longbench.length_group(task.name, row.length)
    return row.extra.get("length")
