"""The data of a run's prompts, read and tokenised before an engine starts."""

from collections.abc import Callable
from typing import Any

from wp1.core.plan import Cell
from wp1.model.models import ServedModel
from wp1.serving import fit
from wp1.workload.limits import longest
from wp1.workload.prompts import PromptData, as_token_ids, source_of
from wp1.workload.tokens import ModelTokens


def prepare(cfg: Any, model: ServedModel, cells: list[Cell], tell: Callable[[str], None], given: Any) -> PromptData:
    """The prompt data of `workload.prompts` for the cells of one arm.

    tell: called with a description of each slow step. given: what the source's `read` returned.
    Raises ConfigError if a prompt does not fit into model.max_len, or the source refuses its data.
    """
    source = source_of(cfg.workload.prompts)
    tokens = ModelTokens(model.folder) if model.has_tokenizer else None
    bare = PromptData(model.vocab_size, tokens.chat if tokens else as_token_ids)
    data = source.prepare(cfg, bare, tokens, cells, tell, given)
    if lengths := source.lengths(data):
        fit.check_lengths(model, lengths, longest(cfg.workload))
    return data
