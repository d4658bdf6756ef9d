"""RULER's prompts of one length for one tokenizer, each filled to that length."""

import random
from pathlib import Path
from typing import Any

from wp1.core.errors import ConfigError
from wp1.quality import lm_eval_files
from wp1.quality.book import Passages
from wp1.quality.fit_to_length import Filler
from wp1.quality.ruler.asked import FILES, task_file
from wp1.quality.ruler.needles import NEEDLES, needles_asked
from wp1.quality.ruler.questions import questions_asked
from wp1.quality.ruler.variables import VariableTracking
from wp1.quality.ruler.words import common_words_asked, frequent_words_asked
from wp1.quality.tasks import Made, Row
from wp1.workload.seeds import derive_seed


class RulerPrompts:
    """Makes prompts of one length for one tokenizer.

    tokens: a `wp1.workload.tokens.ModelTokens`. passages: passages of the built-in book.
    qa: by task, a file of SQuAD or HotpotQA in its official form.
    """

    def __init__(self, tokens: Any, length: int, passages: Passages, qa: dict[str, Path] | None = None) -> None:
        self._tokens = tokens
        self._length = length
        self._passages = passages
        self._qa = qa or {}
        self._fillers: dict[str, Filler] = {}
        self._variables = VariableTracking(tokens)

    def make(self, task: str, seed: int, number: int, depth: float | None = None) -> Made:
        """Prompt `number` of a task; the same arguments give the same prompt on any machine.

        depth: where the needle that is asked for stands, in percent of the context; None: drawn.
        Raises ConfigError if the task does not fit the length, or needs a file that is not given.
        """
        rng = random.Random(derive_seed(seed, "ruler", task, self._length, number, depth))
        if task in NEEDLES:
            asked = needles_asked(NEEDLES[task], rng, depth, self._tokens, self._passages)
        elif task in FILES:
            asked = questions_asked(task, self._qa.get(task), rng, number, self._tokens)
        elif task == "vt":
            asked = self._variables.asked(rng, seed)
        else:
            make = {"cwe": common_words_asked, "fwe": frequent_words_asked}[task]
            asked = make(rng, self._length, self._tokens)
        answer = asked.opening.strip()
        filler = self._fillers.setdefault(
            task, Filler(lambda _: [], self._length, lm_eval_files.max_tokens(task_file(task)))
        )
        filler.encode = lambda text: self._tokens.chat(text, answer)
        ids = filler.fit(asked.draft, f"{task} at {self._length}")
        units = filler.chosen[0]
        if task == "cwe" and units == asked.draft.most and len(ids) < filler.bounds[0]:
            raise ConfigError(
                f"cwe at {self._length} needs more words than the {asked.draft.most:,} there are: leave it out of "
                "dataset.tasks, or ask for shorter prompts"
            )
        row = Row(
            id=f"{self._length}-{number}" + (f"-depth{depth:g}" if depth is not None else ""),
            task=task,
            context=asked.draft.make(units, 0),
            answers=list(asked.answers),
            length=self._length,
            extra={"answer_prefix": answer, "depths": asked.depths(units), "depth": depth},
        )
        return Made(row, ids)
