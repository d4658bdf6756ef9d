"""What a run's prompts are made of, read and tokenised before an engine starts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from wp1.errors import ConfigError
from wp1.plan import Cell
from wp1.quality import asking
from wp1.serving import fit
from wp1.serving.models import ServedModel
from wp1.workload import dataset, texts, trace
from wp1.workload.limits import longest
from wp1.workload.prompts import Encode, Material, as_token_ids
from wp1.workload.tokens import ModelTokens


def prepare(cfg: Any, model: ServedModel, cells: list[Cell], tell: Callable[[str], None]) -> Material:
    """The material of `workload.prompts`, for the cells of one arm. `tell` is told what takes long.

    Raises ConfigError where a file cannot be read, a prompt does not fit into model.max_len, or a text is too short.
    """
    tokens = ModelTokens(model.folder) if model.has_tokenizer else None
    encode: Encode = tokens.chat if tokens else as_token_ids
    kind = cfg.workload.prompts
    if kind == "judged":
        return Material(model.vocab_size, encode, asked=asking.examples(cfg, cells, tokens, tell))
    if kind == "dataset":
        questions = [(row, np.asarray(encode(row.prompt), dtype=np.int32)) for row in dataset.load(cfg.dataset)]
        fit.check_lengths(model, {row.id: len(ids) for row, ids in questions}, longest(cfg.workload))
        return Material(model.vocab_size, encode, questions)
    if kind == "trace":
        return Material(model.vocab_size, encode, rows=trace.load(cfg.workload, cfg.model.max_len, encode))
    if kind == "text":
        text = texts.tokens(texts.read(cfg.workload.text_path), tokens.ids if tokens else as_token_ids)
        _check_text(cells, len(text))
        return Material(model.vocab_size, encode, text=text)
    return Material(model.vocab_size, encode)


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
