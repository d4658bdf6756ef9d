"""LongBench (arXiv:2308.14508): 21 tasks in six categories, and the 13 of LongBench-E, whose names end in `_e`.

The rules are those of LongBench's own pred.py, eval.py and metrics.py (THUDM/LongBench at 2e00731f): what is too long
loses its middle; few-shot and code tasks are asked without a chat template; of few-shot answers the first line counts;
the best of several references counts; the overall score is the mean of the categories, each the mean of its tasks.
Wording, limits and, where they equal the official ones, scorers are lm-eval's.
"""

import sys
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

from wp1.quality import lm_eval_files
from wp1.quality.tasks import Row, Task
from wp1.quality.text_scores import edit_similarity

NAME = "longbench"
CATEGORIES = {
    "single-document QA": ("narrativeqa", "qasper", "multifieldqa_en", "multifieldqa_zh"),
    "multi-document QA": ("hotpotqa", "2wikimqa", "musique", "dureader"),
    "summarization": ("gov_report", "qmsum", "multi_news", "vcsum"),
    "few-shot": ("trec", "triviaqa", "samsum", "lsht"),
    "synthetic": ("passage_count", "passage_retrieval_en", "passage_retrieval_zh"),
    "code": ("lcc", "repobench-p"),
}
CATEGORY_OF = {task: category for category, tasks in CATEGORIES.items() for task in tasks}
E_TASKS = (
    "qasper", "multifieldqa_en", "hotpotqa", "2wikimqa", "gov_report", "multi_news", "trec", "triviaqa", "samsum",
    "passage_count", "passage_retrieval_en", "lcc", "repobench-p",
)  # fmt: skip
CHINESE = ("multifieldqa_zh", "dureader", "vcsum", "lsht", "passage_retrieval_zh")
FIRST_LINE = ("trec", "triviaqa", "samsum", "lsht")
WITHOUT_CHAT = (*FIRST_LINE, "lcc", "repobench-p")
# Of LongBench-E, by the length that the set states (words; characters of Chinese).
LENGTH_GROUPS = ((4000, "0-4k"), (8000, "4-8k"), (None, "8k+"))


def names() -> tuple[str, ...]:
    return (*CATEGORY_OF, *(f"{name}_e" for name in E_TASKS))


@cache
def task(name: str) -> Task:
    base = name.removesuffix("_e") if name not in CATEGORY_OF else name
    file = lm_eval_files.task_file("longbench", f"{name}.yaml")
    metric = str(file["metric_list"][-1]["metric"])
    scorer = _scorer(metric)
    return Task(
        name=name,
        benchmark=NAME,
        category=CATEGORY_OF[base],
        max_tokens=lm_eval_files.max_tokens(file),
        prompt=lambda row: lm_eval_files.render(file["doc_to_text"], context=row.context, question=row.question),
        score=lambda prediction, row: _best(scorer, _post_processed(base, prediction), row),
        chat=base not in WITHOUT_CHAT,
        # Else a model goes on with dialogues of its own; pred.py has no other stop.
        stop=("\n",) if base == "samsum" else (),
        metric=metric.removesuffix("_score"),
    )


def length_group(name: str, length: Any) -> str | None:
    """Of a row of LongBench-E, its group by the length that the set states; None of another task's, or unstated."""
    if not name.endswith("_e") or not isinstance(length, int):
        return None
    return next(group for below, group in LENGTH_GROUPS if below is None or length < below)


def _post_processed(base: str, prediction: str) -> str:
    return prediction.lstrip("\n").split("\n")[0] if base in FIRST_LINE else prediction


def _best(scorer: Callable[..., float], prediction: str, row: Row) -> float:
    return max((float(scorer(prediction, str(a), all_classes=row.all_classes)) for a in row.answers), default=0.0)


def _scorer(metric: str) -> Callable[..., float]:
    if metric == "code_sim_score":
        return code_sim
    if metric == "classification_score":
        return classification

    def theirs(prediction: str, answer: str, **_: Any) -> float:
        return getattr(_metrics(), metric)(prediction, answer)

    return theirs


def code_sim(prediction: str, answer: str, **_: Any) -> float:
    """Edit similarity of the first line that is neither comment nor fence (metrics.py, `code_sim_score`).

    lm-eval leaves out blank lines too, which the official one does only at the beginning.
    """
    lines = prediction.lstrip("\n").split("\n")
    line = next((line for line in lines if "`" not in line and "#" not in line and "//" not in line), "")
    return edit_similarity(line, answer)


def classification(prediction: str, answer: str, all_classes: list[str]) -> float:
    """1 / the number of classes named, where the right one is among them (metrics.py, `classification_score`).

    A class that is part of the right one's name does not count against it. The official scorer removes those from the
    list that it walks over, and so misses one that follows another; a score that equals it has to as well.
    """
    named = [name for name in all_classes if name in prediction]
    position = 0
    while position < len(named):
        name = named[position]
        if name in answer and name != answer:
            named.remove(name)
        position += 1
    return 1.0 / len(named) if answer in named else 0.0


@cache
def _metrics() -> ModuleType:
    """lm-eval's metrics.py. It imports fuzzywuzzy (GPL) for `code_sim_score`, which is ours: an empty module does."""
    stand_in = "fuzzywuzzy" not in sys.modules
    if stand_in:
        sys.modules["fuzzywuzzy"] = ModuleType("fuzzywuzzy")
        sys.modules["fuzzywuzzy"].fuzz = None  # type: ignore[attr-defined]
    try:
        import logging

        import jieba

        jieba.setLogLevel(logging.WARNING)
        return lm_eval_files.module("longbench", "metrics")
    finally:
        if stand_in:
            del sys.modules["fuzzywuzzy"]
