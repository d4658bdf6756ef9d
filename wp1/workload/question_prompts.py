"""Prompts from a dataset's questions, prompts and recorded chats."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wp1.core.errors import ConfigError
from wp1.core.plan import Cell
from wp1.core.records import Request
from wp1.workload import dataset, lengths
from wp1.workload.prompts import PromptData, PromptSource, Requests, as_token_ids, request_of
from wp1.workload.seeds import derive_seed
from wp1.workload.tokens import ModelTokens

if TYPE_CHECKING:
    import numpy as np


class QuestionPrompts(PromptSource):
    """A dataset's rows in file order, the same in every repeat."""

    repeated = True
    asks_questions = True

    def read(self, cfg: Any, tell: Callable[[str], None]) -> dataset.Questions:
        tell(f"reading {cfg.dataset.name}")
        return dataset.read(cfg.dataset)

    def files(self, cfg: Any) -> dict[str, Path]:
        return {"dataset": dataset.path_of(cfg.dataset)}

    def prepare(
        self,
        cfg: Any,
        data: PromptData,
        tokens: ModelTokens | None,
        cells: Sequence[Cell],
        tell: Callable[[str], None],
        given: dataset.Questions,
    ) -> PromptData:
        return replace(data, questions=tokenized(given.rows, tokens))

    def lengths(self, data: PromptData) -> dict[str, int]:
        return {row.id: len(ids) for row, ids in data.questions}

    def requests(self, cfg: Any, cell: Cell, repeat: int, data: PromptData) -> Requests:
        rows, count = data.questions, cell.num_requests or len(data.questions)
        sizes = lengths.outputs(cfg.workload, count, derive_seed(cfg.seed, cell.name, "output lengths"))
        # A row's own length applies, up to workload.output_len, unless the user has set a distribution.
        by_row = cfg.workload.output_distribution == "fixed"

        def make(n: int) -> Request:
            question, _ = rows[n % len(rows)]
            seed = derive_seed(cfg.seed, cell.name, n, "sampling")
            size = sizes[n]
            if by_row and question.output_len is not None:
                size = min(question.output_len, size)
            return request_of(cfg, cell, repeat, f"{n}-{question.id}", [], question.question, seed, size)

        return Requests(count, make, lambda n: rows[n % len(rows)][1].tolist())

    def inputs(self, cfg: Any, given: dataset.Questions, data: PromptData) -> tuple[dict[str, Any], list[str]]:
        if cfg.dataset.source != "file":
            return {}, []
        cap = cfg.workload.output_len
        stated = [row.output_len for row, _ in data.questions if row.output_len is not None]
        by_row = cfg.workload.output_distribution == "fixed"
        cut = sum(length > cap for length in stated) if by_row else 0
        summary = {
            "file": str(dataset.path_of(cfg.dataset)),
            "rows": len(given.rows),
            "bad_rows": len(given.bad),
            "first_bad": given.bad[:5],
            "output_lengths_by_row": len(stated) if by_row else 0,
            "cut_to_output_len": cut,
        }
        line = f"dataset {Path(summary['file']).name}: {len(given.rows):,} questions"
        line += f", {len(given.bad):,} bad rows left out" if given.bad else ""
        if stated and by_row:
            line += f"; {len(stated):,} set the length of their answer"
            line += f", {cut:,} of them above workload.output_len={cap}, which applies instead" if cut else ""
        return {"questions": summary}, [line]


def tokenized(rows: list[dataset.Question], tokens: ModelTokens | None) -> "list[tuple[dataset.Question, np.ndarray]]":
    """Questions with their token ids; a row without an output length gets the length of its recorded answer."""
    import numpy as np

    answers = [row.answer or "" for row in rows]
    recorded = tokens.counts(answers) if tokens else [len(as_token_ids(answer)) for answer in answers]
    questions = []
    for row, length in zip(rows, recorded, strict=True):
        try:
            ids = tokens.messages(row.messages) if tokens and row.messages else None
        except ValueError as error:
            raise ConfigError(f"{row.where} does not fit the model's chat template ({error})") from error
        if ids is None:
            ids = tokens.chat(row.prompt) if tokens else as_token_ids(row.prompt)
        question = replace(row, output_len=row.output_len or length or None)
        questions.append((question, np.asarray(ids, dtype=np.int32)))
    return questions
