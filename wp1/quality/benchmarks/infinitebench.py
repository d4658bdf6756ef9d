"""InfiniteBench (arXiv:2402.13718): 12 tasks of about 100,000 tokens.

Prompts and limits are lm-eval's, which are the official ones for GPT-4 (OpenBMB/InfiniteBench at 88b3daa6,
src/prompt.py and src/eval_utils.py). Scorers are lm-eval's if they equal those in src/compute_scores.py there. Prompts
that are too long lose their middle.
"""

import json
import random
import re
import string
import uuid
from collections.abc import Callable
from decimal import Decimal
from functools import cache
from typing import Any

from wp1.quality import builtin, lm_eval_files, rows
from wp1.quality.builtin import Kind, KindOf, around, questions
from wp1.quality.fit_to_length import padding
from wp1.quality.rows import Fields
from wp1.quality.tasks import Benchmark, BuiltIn, Making, Predictions, Reporting, Row, Task
from wp1.quality.text_scores import f1, rouge_lsum, words_of
from wp1.workload.row_files import BadRowError

NAME = "infinitebench"
CATEGORIES = {
    "retrieval": ("passkey", "number_string", "kv_retrieval"),
    "code": ("code_run", "code_debug"),
    "math": ("math_find", "math_calc"),
    "novel": ("longbook_sum_eng", "longbook_choice_eng", "longbook_qa_eng", "longbook_qa_chn"),
    "dialogue": ("longdialogue_qa_eng",),
}
CATEGORY_OF = {task: category for category, tasks in CATEGORIES.items() for task in tasks}
CHOICES = ("code_debug", "longbook_choice_eng")
LETTERS = ["A", "B", "C", "D"]
METRICS = {"math_calc": "prefix", "longbook_sum_eng": "rouge_lsum", "longbook_qa_eng": "f1", "longbook_qa_chn": "f1"}
# The one task that lm-eval lacks; from prompt.py and eval_utils.py.
MATH_CALC = "Compute the intermediate values in the following long expression.\n\n{context}"
MATH_CALC_TOKENS = 30_000


@cache
def task(name: str) -> Task:
    file = {} if name == "math_calc" else _task_file(name)
    return Task(
        name=name,
        benchmark=NAME,
        category=CATEGORY_OF[name],
        max_tokens=lm_eval_files.max_tokens(file) if file else MATH_CALC_TOKENS,
        prompt=lambda row: _prompt(name, file, row),
        score=lambda prediction, row: _score(name, prediction, row),
        metric=METRICS.get(name, "accuracy"),
        options=name in CHOICES,
    )


def _task_file(name: str) -> dict[str, Any]:
    lm_eval_name = name.replace("_eng", "_en")
    return lm_eval_files.task_file("infinitebench", f"infinitebench_{lm_eval_name}.yaml")


def _prompt(name: str, file: dict[str, Any], row: Row) -> str:
    if name == "math_calc":
        return MATH_CALC.format(context=row.context)
    fields = {"context": row.context, "input": row.question, "options": row.choices}
    template = str(file["doc_to_text"])
    if template.startswith("utils."):
        text = getattr(_utils(), template.removeprefix("utils."))(fields)
    else:
        text = lm_eval_files.render(template, **fields)
    return str(file.get("description", "")) + text


def row(name: str, fields: Fields, default_id: str) -> Row:
    """A row from the official schema, or from the generic one."""
    options = rows.options(fields)
    if name in CHOICES and not options:
        raise BadRowError('has 0 "options": four are needed')
    references = answers(name, fields, ("answer", "answers"))
    return Row(
        id=rows.identifier(fields, ("id", "_id"), default_id),
        task=name,
        context=rows.filled(fields, "context"),
        question=rows.first_text(fields, ("input", "question"), default=""),
        answers=references,
        choices=options,
        language="zh" if name.endswith("_chn") else "en",
    )


def answers(name: str, fields: Fields, names: tuple[str, ...]) -> list[Any]:
    """The answers: numbers if the task asks for numbers (math_calc's may be nested), a choice as text and letter."""
    options = rows.options(fields)
    key = rows.first_of(fields, names) or names[0]
    references = rows.listed(fields.get(key), key, nested=name == "math_calc")
    # The official files have a text and its letter only for multiple choice.
    if key == "ground_truth" and name not in CHOICES and len(references) == 2 and references[1] in LETTERS:
        raise BadRowError(f"is multiple choice (its answer has a letter), but {name} is not")
    check_answers(name, references)
    return label_of(name, references, options)


def _features() -> Any:
    """Column types: inference fails for a column whose first rows are empty, and for numbers among the answers."""
    from datasets import Features, List, Value

    text = Value("string")
    return Features({"id": Value("int64"), "context": text, "input": text, "answer": List(text), "options": List(text)})


def label_of(name: str, answer: list[Any], options: list[str]) -> list[Any]:
    """The answers as scored: for a choice, its text and its letter (eval_utils.py, `get_answer`).

    answer: for a choice, its text, its letter, or both. Raises BadRowError for a choice that is not one of the options,
    or for a text whose letter is unknown.
    """
    if name not in CHOICES or (len(answer) == 2 and answer[1] in LETTERS):
        return answer
    if answer[0] in options:
        return [answer[0], LETTERS[options.index(answer[0])]]
    if answer[0] in LETTERS:
        return [options[LETTERS.index(answer[0])] if options else answer[0], answer[0]]
    if not options:
        raise BadRowError('has an "answer" without its letter: give the letter, or "options" (four texts)')
    raise BadRowError('has an "answer" that is not one of its "options"')


def check_answers(name: str, answers: list[Any]) -> None:
    """Raises BadRowError if a task that asks for numbers has other answers."""
    pattern = {"math_find": r"-?\d+(\.\d+)?", "math_calc": r"-?\d+(\.0+)?", "code_run": r"-?\d+"}.get(name)
    if pattern is None:
        return
    for value in answers[0] if isinstance(answers[0], list) else answers:
        if not re.fullmatch(pattern, str(value)):
            kind = "number" if name == "math_find" else "whole number"
            raise BadRowError(f"has the answer {str(value)[:40]!r}, which is not a {kind}")


def _score(name: str, prediction: str, row: Row) -> float:
    ours = OURS.get(name)
    if ours is not None:
        return float(ours(prediction, row.answers))
    scorer = str(_task_file(name)["process_results"]).removeprefix("utils.")
    answers = [str(answer) for answer in row.answers[:1]]
    return float(getattr(_utils(), scorer)({"answer": answers}, [prediction])["score"])


def _utils() -> Any:
    return lm_eval_files.module("infinitebench", "utils")


def _words(text: str, replaced: str) -> list[str]:
    return "".join(" " if sign in replaced else sign for sign in text).split()


def _dialogue(prediction: str, answers: list[str]) -> bool:
    """Whether the first name occurs as a separate word, in capitals (`get_score_one_longdialogue_qa_eng`)."""
    return answers[0] in [word.upper() for word in _words(prediction, "\n:\"'.,?!{}")]


def _qa_english(prediction: str, answers: list[str]) -> float:
    """F1 over words, for the best of the answers (`qa_f1_score`)."""
    return max(f1(words_of(prediction), words_of(str(answer))) for answer in answers)


def _qa_chinese(prediction: str, answers: list[str]) -> float:
    """F1 over characters, for the best of the answers (`qa_f1_score_zh`). lm-eval lacks part of the punctuation."""
    return max(f1(_characters(prediction), _characters(str(answer))) for answer in answers)


# Punctuation in compute_scores.py, which adds string.punctuation.
ZH_PUNCTUATION = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》「」『』【】"
    "〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏."
)


def _characters(text: str) -> list[str]:
    punctuation = string.punctuation + ZH_PUNCTUATION
    return [sign for sign in text.lower() if sign not in punctuation and not sign.isspace()]


def _code_debug(prediction: str, label: list[str]) -> bool:
    """Whether the option's letter is at the beginning, or its letter or name after a phrase
    (`get_score_one_code_debug`)."""
    name, letter = label
    text = prediction.strip()
    if text[:2] in (f"{letter}.", f"{letter}:"):
        return True
    for part in ("\n", "`", "'", '"', "-", "*", "Option", "option"):
        text = text.replace(part, " ")
    after = _after_phrase(re.sub(" {2,}", " ", text), ("answer is:", "is:", "answer:", "correct option is:"))
    return after is not None and after.startswith((letter, name))


def _choice(prediction: str, label: list[str]) -> bool:
    """Whether the choice is right: by first letter, the option's text, a letter after a phrase, or the first lone
    letter (`get_score_one_longbook_choice_eng`)."""
    text = prediction.strip()
    if not text:
        return False
    if text[0] in "ABCD":
        return text[0] in label
    if text in label:
        return True
    text = re.sub(" {2,}", " ", "".join(" " if sign in "\n\"'.,?!{}" else sign for sign in text))
    after = _after_phrase(text, ("answer is:", "answer:", "answer is", "option is"))
    if after is not None:
        return after.startswith(tuple(label))
    # "AB" also counts as part of "ABCD", as in the official scorer.
    first = next((word for word in text.split() if word in "ABCD"), None)
    return first is not None and first in label


def _after_phrase(text: str, phrases: tuple[str, ...]) -> str | None:
    """The text after the first phrase that occurs, without its first character; None if none occurs."""
    for phrase in phrases:
        at = text.find(phrase)
        if at != -1:
            return text[at + len(phrase) + 1 :]
    return None


def _math_find(prediction: str, label: list[Any]) -> bool:
    """Whether the first number is right (`get_score_one_math_find`, which crashes on a decimal for a whole number).

    Uses Decimal, because a number may have more digits than a float holds or Python's int accepts.
    """
    number = re.search(r"[0-9]+\.[0-9]+|[0-9]+", prediction)
    return number is not None and Decimal(number.group()) == Decimal(str(label[0]))


def _math_calc(prediction: str, label: list[Any]) -> float:
    """Share of the values that are right before the first wrong one (`get_score_one_math_calc`)."""
    values = label[0] if label and isinstance(label[0], list) else label
    right = 0
    for wanted, value in zip(values, re.findall(r"[0-9]+", prediction), strict=False):
        if Decimal(str(wanted)) != Decimal(value):
            break
        right += 1
    return right / len(values)


def _summary(prediction: str, answers: list[str]) -> float:
    """ROUGE-Lsum without stemming, for the best of the references, as Hugging Face's `evaluate` computes it."""
    return max(rouge_lsum(prediction, str(answer)) for answer in answers)


OURS: dict[str, Callable[[str, list[Any]], float]] = {
    "longdialogue_qa_eng": _dialogue,
    "longbook_qa_eng": _qa_english,
    "longbook_qa_chn": _qa_chinese,
    "longbook_sum_eng": _summary,
    "longbook_choice_eng": _choice,
    "code_debug": _code_debug,
    "math_find": _math_find,
    "math_calc": _math_calc,
}


def _hidden(what: str, digits: int) -> KindOf:
    """A number hidden in noise, as in InfiniteBench's construct_synthetic_dataset.py."""

    def kind(making: Making, rng: random.Random, number: int) -> Kind:
        value = "".join(rng.choices(string.digits[1:], k=digits))
        depth = rng.uniform(0, 1)
        line = " ".join(padding(5))
        hidden = f"The {what} is {value}. Remember it. {value} is the {what}."

        def row(units: int, noise: int) -> Row:
            lines = [line] * units + ([" ".join(padding(noise))] if noise else [])
            lines.insert(round(depth * units), hidden)
            return Row("", "", "\n".join(lines), f"What is the {what}?", [value], extra={"depth": 100 * depth})

        each = making.tokens.counts([f"{line}\n"])[0]
        return Kind(row, lambda units: units * each)

    return kind


def _pairs(making: Making, rng: random.Random, number: int) -> Kind:
    """One value of a large JSON object."""
    pairs: list[tuple[str, str]] = []
    place = rng.random()

    def new() -> str:
        return str(uuid.UUID(int=rng.getrandbits(128), version=4))

    def row(units: int, noise: int) -> Row:
        while len(pairs) < units:
            pairs.append((new(), new()))
        key, value = pairs[int(place * units)]
        question = f'Key: "{key}"\nThe value associated with the specified key is: '
        fillers = {"": " ".join(padding(noise))} if noise else {}
        context = "JSON data:\n" + json.dumps(dict(pairs[:units]) | fillers, indent=0)
        return Row("", "", context, question, [value], extra={"depth": round(100 * place, 1)})

    each = sum(making.tokens.counts([f'"{new()}": "{new()}",\n' for _ in range(16)])) / 16
    return Kind(row, lambda units: round(units * each), 2)


def _numbers(making: Making, rng: random.Random, number: int) -> Kind:
    """The largest or smallest number of a list, which occurs only once."""
    largest = rng.random() < 0.5
    drawn: list[int] = []

    def row(units: int, noise: int) -> Row:
        while len(drawn) < units:
            drawn.append(rng.randrange(10, 90))
        end = 90 + number % 10 if largest else number % 10
        values = list(drawn[:units])
        values.insert(len(values) // 3, end)
        which = "largest" if largest else "smallest"
        question = f"You should answer with only one number, no other words. The {which} number of the list is: "
        return Row("", "", str(values), question, [end])

    each = making.tokens.counts([", 47, 83, 15, 62"])[0] / 4
    return Kind(row, lambda units: round(units * each), 4)


def _built_in_choice(making: Making, rng: random.Random, number: int) -> Kind:
    question, stretch, depth = around(making.passages, rng, number)
    others = sorted({q.answers[0] for q in questions() if q.kind == question.kind} - set(question.answers))
    options = [question.answers[0], *rng.sample(others, 3)]
    rng.shuffle(options)
    label = label_of("longbook_choice_eng", [question.answers[0]], options)

    def row(units: int, noise: int) -> Row:
        context = " ".join([*making.passages.texts(*stretch(units)), *padding(noise)])
        return Row("", "", context, question.text, label, choices=options, extra={"depth": depth})

    return Kind(row, lambda units: making.passages.size(*stretch(units)))


MADE = {
    "passkey": _hidden("pass key", 5),
    "number_string": _hidden("sequence of digits", 10),
    "kv_retrieval": _pairs,
    "math_find": _numbers,
    "longbook_choice_eng": _built_in_choice,
}
BENCHMARK = Benchmark(
    name=NAME,
    names=tuple(CATEGORY_OF),
    task=task,
    row=row,
    answers=answers,
    features=_features,
    built_in=BuiltIn(tasks=tuple(MADE), maker=lambda making: builtin.maker(making, MADE, task)),
    predictions=Predictions(marks=("ground_truth",)),
    reporting=Reporting("InfiniteBench"),
)
