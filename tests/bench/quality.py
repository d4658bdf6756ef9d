"""The cost of quality benchmarks without an engine: making prompts, truncating long ones, and scoring answers.

Generation makes 100 RULER prompts of 131,072 tokens; the target is under 60 s on one core. For comparison, each of them
is tokenized once, which is the lower bound.
"""

import time
from collections.abc import Callable
from typing import Any

from hydra import compose, initialize_config_dir

from wp1.config import schema
from wp1.main import CONF
from wp1.model import models
from wp1.quality.benchmarks import chosen, find, own
from wp1.quality.book import Passages
from wp1.quality.examples import cut
from wp1.quality.ruler.prompts import RulerPrompts
from wp1.quality.tasks import Row
from wp1.workload.tokens import ModelTokens

PROMPTS, LENGTH = 100, 131_072
CUT, SCORED = 20, 2000


def rows() -> list[list[str]]:
    """Rows for the table of `make bench`, with the bundled model's tokenizer."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        tokens = ModelTokens(models.prepare(schema.resolve(compose("config"))).folder)
    passages = Passages(tokens)
    return [_generation(tokens, passages), _truncation(tokens, passages), _scoring()]


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.perf_counter()
    result = work()
    return time.perf_counter() - begin, result


def _generation(tokens: ModelTokens, passages: Passages) -> list[str]:
    tasks = [task.name for task in chosen(["ruler_subset"], own())]
    prompts = RulerPrompts(tokens, LENGTH, passages)
    seconds, examples = _timed(lambda: [prompts.make(tasks[n % len(tasks)], 42, n) for n in range(PROMPTS)])
    least, _ = _timed(lambda: [tokens.chat(one.row.context) for one in examples])
    what = f"{PROMPTS} RULER prompts of {LENGTH:,} tokens made, against tokenized once"
    return [what, f"{seconds:.1f} s", f"{least:.1f} s", f"{seconds / least:.2f}", "", "under 60 s"]


def _truncation(tokens: ModelTokens, passages: Passages) -> list[str]:
    task = find("longbench/hotpotqa")
    context = " ".join(passages.texts(0, 4000))
    row = Row("1", task.name, context, "Who?", ["a"])
    seconds, _ = _timed(lambda: [cut(task, row, tokens, 8192) for _ in range(CUT)])
    text = task.prompt(row)
    least, _ = _timed(lambda: [tokens.chat(text) for _ in range(CUT)])
    what = f"{CUT} prompts of {len(tokens.ids(text)):,} tokens cut to 8,192, against tokenized once"
    return [what, f"{seconds:.1f} s", f"{least:.1f} s", f"{seconds / least:.2f}", "", "—"]


def _scoring() -> list[str]:
    task = find("longbench/hotpotqa")
    row = Row("1", task.name, answers=["the King of France", "a king", "Louis the Sixteenth"])
    task.score("warm-up", row)
    seconds, _ = _timed(lambda: [task.score(f"It was the king of France, number {n}", row) for n in range(SCORED)])
    return [f"{SCORED:,} answers scored by F1", f"{seconds:.2f} s", "—", "—", "", "—"]
