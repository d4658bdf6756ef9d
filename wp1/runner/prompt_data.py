"""What a run's prompts are made of, read and tokenised before an engine starts."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from wp1.core.errors import ConfigError
from wp1.core.plan import Cell
from wp1.model.models import ServedModel
from wp1.quality import examples, sources
from wp1.serving import fit
from wp1.workload import dataset, texts, trace
from wp1.workload.limits import longest
from wp1.workload.prompts import Encode, PromptData, as_token_ids
from wp1.workload.tokens import ModelTokens


@dataclass(frozen=True)
class Given:
    """A run's own data as it was read, before there is a model: one of these at most."""

    questions: dataset.Questions | None = None
    recorded: trace.Trace | None = None
    text: str | None = None
    drawn: sources.Drawn | None = None


def read(cfg: Any, tell: Callable[[str], None]) -> Given:
    """Reads the data of `workload.prompts`, before the model is fetched or unpacked for what cannot be used.

    Raises ConfigError where a file cannot be read, a row cannot be used, or a recorded prompt does not fit into
    model.max_len.
    """
    kind = cfg.workload.prompts
    if kind == "scored":
        return Given(drawn=examples.read(cfg, tell))
    if kind == "dataset":
        tell(f"reading {cfg.dataset.name}")
        return Given(questions=dataset.read(cfg.dataset))
    if kind == "trace":
        tell("reading the trace")
        found = trace.read(cfg.workload)
        trace.check_lengths(found, cfg.model.max_len)
        return Given(recorded=found)
    return Given(text=texts.read(cfg.workload.text_path) if kind == "text" else None)


def prepare(
    cfg: Any, model: ServedModel, cells: list[Cell], tell: Callable[[str], None], given: Given | None = None
) -> PromptData:
    """What the prompts of `workload.prompts` are made of, for the cells of one arm. `tell` is told what takes long.

    given: what `read` found; None: it is read now.
    Raises ConfigError as `read`, and where a prompt does not fit into model.max_len, or a text is too short.
    """
    given = read(cfg, tell) if given is None else given
    tokens = ModelTokens(model.folder) if model.has_tokenizer else None
    encode: Encode = tokens.chat if tokens else as_token_ids
    if cfg.workload.prompts == "scored":
        return PromptData(model.vocab_size, encode, examples=examples.examples(cfg, cells, tokens, tell, given.drawn))
    if given.questions is not None:
        questions = _tokenized(given.questions.rows, tokens)
        fit.check_lengths(model, {row.id: len(ids) for row, ids in questions}, longest(cfg.workload))
        return PromptData(model.vocab_size, encode, questions)
    if given.recorded is not None:
        return PromptData(
            model.vocab_size, encode, rows=trace.tokenized(given.recorded, cfg.model.max_len, encode).rows
        )
    if given.text is not None:
        text = texts.tokens(given.text, tokens.ids if tokens else as_token_ids)
        _check_text(cells, len(text))
        return PromptData(model.vocab_size, encode, text=text)
    return PromptData(model.vocab_size, encode)


def _tokenized(rows: list[dataset.Question], tokens: ModelTokens | None) -> list[tuple[dataset.Question, np.ndarray]]:
    """Questions with their token ids, and with the length of a recorded answer where a row states none."""
    answers = [row.answer or "" for row in rows]
    recorded = tokens.counts(answers) if tokens else [len(as_token_ids(answer)) for answer in answers]
    found = []
    for row, length in zip(rows, recorded, strict=True):
        try:
            ids = tokens.messages(row.messages) if tokens and row.messages else None
        except ValueError as error:
            raise ConfigError(f"{row.where} cannot be asked by the model's chat template ({error})") from error
        if ids is None:
            ids = tokens.chat(row.prompt) if tokens else as_token_ids(row.prompt)
        own = replace(row, output_len=row.output_len or length or None)
        found.append((own, np.asarray(ids, dtype=np.int32)))
    return found


def inputs(cfg: Any, given: Given, made: PromptData) -> tuple[dict[str, Any], list[str]]:
    """What run_metadata.json says of a file of questions or a trace, and the same in words for the screen."""
    if given.recorded is not None:
        return {"trace": given.recorded.summary()}, [given.recorded.words()]
    if given.questions is None or cfg.dataset.source != "file":
        return {}, []
    found, cap = given.questions, cfg.workload.output_len
    stated = [row.output_len for row, _ in made.questions if row.output_len is not None]
    by_row = cfg.workload.output_distribution == "fixed"
    cut = sum(length > cap for length in stated) if by_row else 0
    said = {
        "file": str(dataset.path_of(cfg.dataset)),
        "rows": len(found.rows),
        "bad_rows": len(found.bad),
        "first_bad": found.bad[:5],
        "output_lengths_by_row": len(stated) if by_row else 0,
        "cut_to_output_len": cut,
    }
    words = f"dataset {Path(said['file']).name}: {len(found.rows):,} questions"
    words += f", {len(found.bad):,} bad rows left out" if found.bad else ""
    if stated and by_row:
        words += f"; {len(stated):,} say how long their answer is to be"
        words += f", {cut:,} of them more than workload.output_len={cap}, which is taken" if cut else ""
    return {"questions": said}, [words]


def _check_text(cells: list[Cell], there: int) -> None:
    """Raises ConfigError where a text has fewer tokens than a prompt, or fewer places than there are prompts."""
    length = max(cell.prompt_len or 0 for cell in cells)
    wanted = max(cell.repeats * (cell.num_requests or 0) for cell in cells)
    if there - length < wanted:
        raise ConfigError(
            f"the text has {there:,} tokens, too few to cut {wanted:,} different prompts of {length:,} from: set "
            "workload.text_path to a longer text, or shorten the prompts"
        )


def files(cfg: Any) -> dict[str, Path]:
    """The files whose contents decide what is sent, for the configuration hash."""
    if cfg.workload.prompts == "dataset":
        return {"dataset": dataset.path_of(cfg.dataset)}
    if cfg.workload.prompts == "trace":
        return {"trace": Path(cfg.workload.trace_path).expanduser()}
    if cfg.workload.prompts == "text":
        return {"text": texts.path_of(cfg.workload.text_path)}
    return {}
