"""InfiniteBench (arXiv:2402.13718): 12 tasks of about 100,000 tokens.

Prompts and limits are lm-eval's, which are the official ones for GPT-4 (OpenBMB/InfiniteBench at 88b3daa6,
src/prompt.py and src/eval_utils.py); so are its scorers where they equal src/compute_scores.py there. What is too long
loses its middle.
"""

import re
from collections.abc import Callable
from decimal import Decimal
from functools import cache
from typing import Any

from wp1.quality import lm_eval_files
from wp1.quality.tasks import Row, Task
from wp1.quality.text_scores import f1, rouge_lsum, words_of

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
# The one task that lm-eval has not; prompt.py and eval_utils.py.
MATH_CALC = "Compute the intermediate values in the following long expression.\n\n{context}"
MATH_CALC_TOKENS = 30_000


def names() -> tuple[str, ...]:
    return tuple(CATEGORY_OF)


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
    )


def _task_file(name: str) -> dict[str, Any]:
    theirs = name.replace("_eng", "_en")
    return lm_eval_files.task_file("infinitebench", f"infinitebench_{theirs}.yaml")


def _prompt(name: str, file: dict[str, Any], row: Row) -> str:
    if name == "math_calc":
        return MATH_CALC.format(context=row.context)
    fields = {"context": row.context, "input": row.question, "options": row.choices}
    asked = str(file["doc_to_text"])
    if asked.startswith("utils."):
        text = getattr(_utils(), asked.removeprefix("utils."))(fields)
    else:
        text = lm_eval_files.render(asked, **fields)
    return str(file.get("description", "")) + text


def label_of(name: str, answer: list[Any], options: list[str]) -> list[Any]:
    """The answers as scored: of a choice its text and its letter (eval_utils.py, `get_answer`).

    answer: of a choice its text, its letter, or both. Raises ValueError for a choice that is none of the options, or
    for a text whose letter nothing tells.
    """
    if name not in CHOICES or (len(answer) == 2 and answer[1] in LETTERS):
        return answer
    if answer[0] in options:
        return [answer[0], LETTERS[options.index(answer[0])]]
    if answer[0] in LETTERS:
        return [options[LETTERS.index(answer[0])] if options else answer[0], answer[0]]
    if not options:
        raise ValueError('has an "answer" without its letter: give the letter, or "options" (four texts)')
    raise ValueError('has an "answer" that is none of its "options"')


def check_answers(name: str, answers: list[Any]) -> None:
    """Raises ValueError where a task that asks for numbers has others among its answers."""
    pattern = {"math_find": r"-?\d+(\.\d+)?", "math_calc": r"-?\d+(\.0+)?", "code_run": r"-?\d+"}.get(name)
    if pattern is None:
        return
    for value in answers[0] if isinstance(answers[0], list) else answers:
        if not re.fullmatch(pattern, str(value)):
            kind = "number" if name == "math_find" else "whole number"
            raise ValueError(f"has the answer {str(value)[:40]!r}, which is no {kind}")


def _score(name: str, prediction: str, row: Row) -> float:
    ours = OURS.get(name)
    if ours is not None:
        return float(ours(prediction, row.answers))
    theirs = str(_task_file(name)["process_results"]).removeprefix("utils.")
    answers = [str(answer) for answer in row.answers[:1]]
    return float(getattr(_utils(), theirs)({"answer": answers}, [prediction])["score"])


def _utils() -> Any:
    return lm_eval_files.module("infinitebench", "utils")


def _words(text: str, replaced: str) -> list[str]:
    return "".join(" " if sign in replaced else sign for sign in text).split()


def _dialogue(prediction: str, answers: list[str]) -> bool:
    """The first name as a word of its own, in capitals (`get_score_one_longdialogue_qa_eng`)."""
    return answers[0] in [word.upper() for word in _words(prediction, "\n:\"'.,?!{}")]


def _qa_english(prediction: str, answers: list[str]) -> float:
    """F1 of words, best of the answers (`qa_f1_score`)."""
    return max(f1(words_of(prediction), words_of(str(answer))) for answer in answers)


def _qa_chinese(prediction: str, answers: list[str]) -> float:
    """F1 of characters, best of the answers (`qa_f1_score_zh`). lm-eval leaves out part of the punctuation."""
    return max(f1(_characters(prediction), _characters(str(answer))) for answer in answers)


# What counts as punctuation there; string.punctuation is added.
ZH_PUNCTUATION = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、〃》「」『』【】"
    "〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏."
)


def _characters(text: str) -> list[str]:
    import string

    left_out = string.punctuation + ZH_PUNCTUATION
    return [sign for sign in text.lower() if sign not in left_out and not sign.isspace()]


def _code_debug(prediction: str, label: list[str]) -> bool:
    """The option's letter at the beginning, or letter or name after a phrase (`get_score_one_code_debug`)."""
    name, letter = label
    text = prediction.strip()
    if text[:2] in (f"{letter}.", f"{letter}:"):
        return True
    for part in ("\n", "`", "'", '"', "-", "*", "Option", "option"):
        text = text.replace(part, " ")
    after = _after_phrase(re.sub(" {2,}", " ", text), ("answer is:", "is:", "answer:", "correct option is:"))
    return after is not None and after.startswith((letter, name))


def _choice(prediction: str, label: list[str]) -> bool:
    """The first letter, the option's text, a letter after a phrase, or the first lone one
    (`get_score_one_longbook_choice_eng`)."""
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
    # "AB" is part of "ABCD" too, as it is there.
    first = next((word for word in text.split() if word in "ABCD"), None)
    return first is not None and first in label


def _after_phrase(text: str, phrases: tuple[str, ...]) -> str | None:
    """What follows the first phrase that occurs, less one sign; None where none does."""
    for phrase in phrases:
        at = text.find(phrase)
        if at != -1:
            return text[at + len(phrase) + 1 :]
    return None


def _math_find(prediction: str, label: list[Any]) -> bool:
    """The first number equals (`get_score_one_math_find`, which a decimal for a whole number would end).

    Decimal, as a number may have more digits than a float or Python's own int takes.
    """
    number = re.search(r"[0-9]+\.[0-9]+|[0-9]+", prediction)
    return number is not None and Decimal(number.group()) == Decimal(str(label[0]))


def _math_calc(prediction: str, label: list[Any]) -> float:
    """The share of values that are right from the beginning on (`get_score_one_math_calc`)."""
    values = label[0] if label and isinstance(label[0], list) else label
    right = 0
    for wanted, value in zip(values, re.findall(r"[0-9]+", prediction), strict=False):
        if Decimal(str(wanted)) != Decimal(value):
            break
        right += 1
    return right / len(values)


def _summary(prediction: str, answers: list[str]) -> float:
    """ROUGE-Lsum without stemming, best of the references, as Hugging Face's `evaluate` computes it."""
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
