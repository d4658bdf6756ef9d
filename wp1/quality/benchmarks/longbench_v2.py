"""LongBench v2 (arXiv:2412.15204): 503 questions with four choices; the letter is taken from what the model says.

Prompt, extraction and groups as in pred.py and result.py of THUDM/LongBench; the question's wording is lm-eval's, which
scores by log-likelihood and so lacks the line that asks for a format.
"""

import re
from functools import cache

from wp1.quality import lm_eval_files
from wp1.quality.tasks import Task

NAME = "longbench_v2"
# prompts/0shot.txt ends so, where lm-eval's has "Answer:".
FORMAT = 'Format your response as follows: "The correct answer is (insert answer here)".'
MAX_TOKENS = 128  # pred.py
DIFFICULTIES = ("easy", "hard")
LENGTHS = ("short", "medium", "long")


def names() -> tuple[str, ...]:
    return (NAME,)


@cache
def task(name: str) -> Task:
    file = lm_eval_files.task_file("longbench2", "_longbench_common_yaml")
    asked = file["doc_to_text"].removesuffix("Answer:") + FORMAT
    return Task(
        name=name,
        benchmark=NAME,
        category="multiple choice",
        max_tokens=MAX_TOKENS,
        prompt=lambda row: lm_eval_files.render(
            asked,
            context=row.context.strip(),
            question=row.question,
            choices=[choice.strip() for choice in row.choices],
        ),
        score=lambda prediction, row: float(extract(prediction) == row.answers[0]),
    )


def extract(response: str) -> str | None:
    """The letter that a response names in the format asked for, None for none (pred.py, `extract_answer`)."""
    text = response.replace("*", "")
    found = re.search(r"The correct answer is \(([A-D])\)", text) or re.search(r"The correct answer is ([A-D])", text)
    return found.group(1) if found else None
