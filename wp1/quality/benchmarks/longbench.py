"""LongBench (arXiv:2308.14508): 21 tasks in six categories, and the 13 of LongBench-E, whose names end in `_e`.

The rules are those of LongBench's own pred.py, eval.py and metrics.py (THUDM/LongBench at 2e00731f): what is too long
loses its middle; few-shot and code tasks are asked without a chat template; of few-shot answers the first line counts;
the best of several references counts; the overall score is the mean of the categories, each the mean of its tasks.
Wording, limits and, where they equal the official ones, scorers are lm-eval's.
"""

import random
import re
import sys
from collections.abc import Callable, Sequence
from functools import cache
from types import ModuleType
from typing import Any

from wp1.quality import builtin, lm_eval_files, rows
from wp1.quality.builtin import Kind, around, code
from wp1.quality.fit_to_length import padding
from wp1.quality.rows import Fields
from wp1.quality.tasks import Benchmark, BuiltIn, Making, Predictions, Reporting, Row, Task
from wp1.quality.text_scores import edit_similarity
from wp1.workload.row_files import BadRowError

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
LONGBENCH_E = tuple(f"{name}_e" for name in E_TASKS)
# Tasks whose answers name a paragraph; their scorers take the number that follows.
RETRIEVED = {"passage_retrieval_en": "Paragraph ", "passage_retrieval_zh": "段落"}
PARAGRAPHS = 30  # passage_retrieval_en says so in its wording


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
        classes=metric == "classification_score",
    )


def row(name: str, fields: Fields, default_id: str) -> Row:
    """A row in the official schema, or in lm-eval's copy's, or the generic one."""
    language = rows.text(fields, "language", default="zh" if name in CHINESE else "en")
    of_id = rows.identifier(fields, ("_id", "id"), default_id)
    context = rows.filled(fields, "context")
    # Their own name, lm-eval's copy's, and the generic one's.
    question = rows.first_text(fields, ("input", "question"), default="")
    found = answers(name, fields, ("answers", "answer"))
    classes = rows.classes(fields, needed=task(name).classes)
    length = rows.length(fields, "length")
    group = length_group(name, length)
    return Row(
        id=of_id,
        task=name,
        context=context,
        question=question,
        answers=found,
        all_classes=classes,
        length=length,
        language=language,
        groups=() if group is None else (group,),
    )


def answers(name: str, fields: Fields, names: tuple[str, ...]) -> list[Any]:
    """The answers; those of a retrieval have a number after the word for a paragraph."""
    found = rows.answers(name, fields, names)
    form = RETRIEVED.get(name.removesuffix("_e"))
    for answer in found if form is not None else ():
        if not re.search(rf"{form}\d", str(answer)):
            raise BadRowError(f"has the answer {str(answer)[:40]!r}: the number after {form!r} is what is scored")
    return found


def _groups_of_prediction(name: str, fields: Fields) -> Sequence[str]:
    length = fields.get("length")
    if name not in LONGBENCH_E or length is None:
        return ()
    if type(length) is not int or length < 0:
        raise BadRowError('has a "length" that is no whole number, by which LongBench-E is grouped')
    group = length_group(name, length)
    return () if group is None else (group,)


def length_group(name: str, length: Any) -> str | None:
    """Of a row of LongBench-E, its group by the length that the set states; None of another task's, or unstated."""
    if name not in LONGBENCH_E or not isinstance(length, int):
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


def _question(making: Making, rng: random.Random, number: int) -> Kind:
    question, stretch, depth = around(making.passages, rng, number)

    def row(units: int, noise: int) -> Row:
        context = " ".join([*making.passages.texts(*stretch(units)), *padding(noise)])
        return Row("", "", context, question.text, question.answers, extra={"depth": depth})

    return Kind(row, lambda units: making.passages.size(*stretch(units)))


def _retrieval(making: Making, rng: random.Random, number: int) -> Kind:
    """Thirty paragraphs, and words from one of them: which?"""
    starts = [making.passages.somewhere(rng) for _ in range(PARAGRAPHS)]
    right = rng.randrange(PARAGRAPHS)

    def row(units: int, noise: int) -> Row:
        texts = []
        for n, start in enumerate(starts):
            size = units // PARAGRAPHS + (n < units % PARAGRAPHS)
            # No verse has fewer than two words.
            texts.append(" ".join(" ".join(making.passages.texts(start, size // 2 + 1)).split()[:size]))
        context = "\n\n".join(f"Paragraph {n}: {text}" for n, text in enumerate(texts, 1))
        words = texts[right].split()[:40]
        return Row("", "", context, " ".join(words[len(words) // 3 :]), [f"Paragraph {right + 1}"])

    return Kind(row, lambda units: round(units * 1.4), PARAGRAPHS * 6)


def _count_passages(making: Making, rng: random.Random, number: int) -> Kind:
    """Numbered paragraphs of which some occur twice: how many different ones?"""
    drawn: list[int] = []

    def row(units: int, noise: int) -> Row:
        while len(drawn) < units:
            again = len(drawn) > 2 and rng.random() < 0.3
            drawn.append(rng.choice(drawn) if again else making.passages.somewhere(rng))
        texts = [making.passages.texts(start, 1)[0] for start in drawn[:units]]
        context = "\n\n".join(f"Paragraph {n}: {text}" for n, text in enumerate(texts, 1))
        return Row("", "", f"{context} {' '.join(padding(noise))}".strip(), "", [str(len(set(drawn[:units])))])

    each = making.passages.tokens / len(making.passages.verses) + 6
    return Kind(row, lambda units: round(units * each), 2)


def _code(making: Making, rng: random.Random, number: int) -> Kind:
    """The line of code that follows; what goes before begins anywhere, as a window does."""
    source = code()
    while True:
        at = source.index("\n", rng.randrange(len(source) // 4, len(source) - 1000)) + 1
        line = source[at : source.index("\n", at)]
        if len(line.strip()) >= 12 and not set(line) & set("#`\"'"):
            break
    each = making.tokens.counts([source[at - 20_000 : at]])[0] / 20_000

    def row(units: int, noise: int) -> Row:
        return Row("", "", source[at - units : at], "", [line])

    return Kind(row, lambda units: round(units * each), 1, at)


MADE = {
    "multifieldqa_en": _question,
    "passage_retrieval_en": _retrieval,
    "passage_count": _count_passages,
    "lcc": _code,
}
BENCHMARK = Benchmark(
    name=NAME,
    names=(*CATEGORY_OF, *LONGBENCH_E),
    task=task,
    row=row,
    answers=answers,
    built_in=BuiltIn(tasks=tuple(MADE), maker=lambda making: builtin.maker(making, MADE, task)),
    predictions=Predictions(
        marks=("all_classes",),
        groups=_groups_of_prediction,
        # LongBench-E's own files are called as LongBench's.
        stem=lambda name: name.removesuffix("_e"),
        sets={f"{NAME}_e": LONGBENCH_E},
    ),
    reporting=Reporting("LongBench", by_category=True, groups=tuple(group for _, group in LENGTH_GROUPS)),
)
