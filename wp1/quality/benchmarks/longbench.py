"""LongBench (arXiv:2308.14508): 21 tasks in six categories, and the 13 of LongBench-E, whose names end in `_e`.

The rules are those of LongBench's own pred.py, eval.py and metrics.py (THUDM/LongBench at 2e00731f): prompts that are
too long lose their middle; few-shot and code tasks have no chat template; only the first line of a few-shot answer
counts; the best of several references counts; the overall score is the mean of the categories, each the mean of its
tasks. Wording and limits are lm-eval's, as are scorers that equal the official ones.
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
# Groups of LongBench-E by the dataset's stated length (words, or characters of Chinese): upper bound, name.
LENGTH_GROUPS = ((4000, "0-4k"), (8000, "4-8k"), (None, "8k+"))
LONGBENCH_E = tuple(f"{name}_e" for name in E_TASKS)
# Tasks whose answers name a paragraph; their scorers compare the number after this word.
RETRIEVED = {"passage_retrieval_en": "Paragraph ", "passage_retrieval_zh": "段落"}
PARAGRAPHS = 30  # as stated in passage_retrieval_en's wording


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
        # Otherwise a model continues with invented dialogues; pred.py has no other stop.
        stop=("\n",) if base == "samsum" else (),
        metric=metric.removesuffix("_score"),
        classes=metric == "classification_score",
    )


def row(name: str, fields: Fields, default_id: str) -> Row:
    """A row from the official schema, from that of lm-eval's copy, or from the generic one."""
    language = rows.text(fields, "language", default="zh" if name in CHINESE else "en")
    row_id = rows.identifier(fields, ("_id", "id"), default_id)
    context = rows.filled(fields, "context")
    # The official name, and the generic one.
    question = rows.first_text(fields, ("input", "question"), default="")
    references = answers(name, fields, ("answers", "answer"))
    classes = rows.classes(fields, needed=task(name).classes)
    length = rows.length(fields, "length")
    group = length_group(name, length)
    return Row(
        id=row_id,
        task=name,
        context=context,
        question=question,
        answers=references,
        all_classes=classes,
        length=length,
        language=language,
        groups=() if group is None else (group,),
    )


def answers(name: str, fields: Fields, names: tuple[str, ...]) -> list[Any]:
    """The answers. Raises BadRowError if one of a retrieval task has no number after the word for paragraph."""
    references = rows.answers(name, fields, names)
    word = RETRIEVED.get(name.removesuffix("_e"))
    for answer in references if word is not None else ():
        if not re.search(rf"{word}\d", str(answer)):
            raise BadRowError(f"has the answer {str(answer)[:40]!r}: a number after {word!r} is needed for scoring")
    return references


def _groups_of_prediction(name: str, fields: Fields) -> Sequence[str]:
    length = fields.get("length")
    if name not in LONGBENCH_E or length is None:
        return ()
    if type(length) is not int or length < 0:
        raise BadRowError('has a "length" that is not a whole number: LongBench-E groups by it')
    group = length_group(name, length)
    return () if group is None else (group,)


def length_group(name: str, length: Any) -> str | None:
    """The group of a LongBench-E row by its stated length; None for other tasks or without a length."""
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

    def lm_eval_scorer(prediction: str, answer: str, **_: Any) -> float:
        return getattr(_metrics(), metric)(prediction, answer)

    return lm_eval_scorer


def code_sim(prediction: str, answer: str, **_: Any) -> float:
    """Edit similarity of the first line that is neither a comment nor a fence (metrics.py, `code_sim_score`).

    lm-eval skips all blank lines, the official scorer only those at the beginning.
    """
    lines = prediction.lstrip("\n").split("\n")
    line = next((line for line in lines if "`" not in line and "#" not in line and "//" not in line), "")
    return edit_similarity(line, answer)


def classification(prediction: str, answer: str, all_classes: list[str]) -> float:
    """1 / the number of classes named if the right one is among them, else 0 (metrics.py, `classification_score`).

    A class whose name is part of the right one's does not count. The official scorer removes such classes from the
    list while iterating over it, and so skips the element after each; this reproduces that.
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
    """lm-eval's metrics.py. It imports fuzzywuzzy (GPL) only for `code_sim_score`, which wp1 replaces; an empty module
    takes its place."""
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
    """Thirty paragraphs, and words from one of them to be found."""
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
    """Numbered paragraphs, some repeated; the answer is the number of different ones."""
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
    """The next line of code; the code before it starts anywhere, as a window does."""
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
        # LongBench-E's own files have the same names as LongBench's.
        stem=lambda name: name.removesuffix("_e"),
        sets={f"{NAME}_e": LONGBENCH_E},
    ),
    reporting=Reporting("LongBench", by_category=True, groups=tuple(group for _, group in LENGTH_GROUPS)),
)
