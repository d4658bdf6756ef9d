"""The data of a run's prompts, read and tokenised before an engine starts."""

from collections.abc import Callable
from typing import Any

from wp1.core.errors import ConfigError
from wp1.core.plan import Cell
from wp1.model.models import ServedModel
from wp1.serving import fit
from wp1.workload.limits import longest
from wp1.workload.prompts import PromptData, PromptSource, as_token_ids, source_of
from wp1.workload.tokens import ModelTokens


def prepare(cfg: Any, model: ServedModel, cells: list[Cell], tell: Callable[[str], None], given: Any) -> PromptData:
    """The prompt data of `workload.prompts` for the cells of one arm.

    tell: called with a description of each slow step. given: what the source's `read` returned.
    Raises ConfigError if a prompt does not fit into model.max_len, the source refuses its data, or a cell has no
    requests.
    """
    source = source_of(cfg.workload)
    tokens = ModelTokens(model.folder) if model.has_tokenizer else None
    bare = PromptData(model.vocab_size, tokens.chat if tokens else as_token_ids)
    data = source.prepare(cfg, bare, tokens, cells, tell, given)
    if lengths := source.lengths(data):
        fit.check_lengths(model, lengths, longest(cfg.workload))
    for cell in cells:
        _check_requests(cfg, source, cell, data)
    return data


def _check_requests(cfg: Any, source: PromptSource, cell: Cell, data: PromptData) -> None:
    cause = None
    try:
        if len(source.requests(cfg, cell, 0, data)):
            return
    except TypeError as error:
        if cell.num_requests is not None:
            raise
        cause = error  # a source that needs a number
    count = "null" if cfg.workload.num_requests is None else cfg.workload.num_requests
    raise ConfigError(
        f"workload.prompts={cfg.workload.prompts} gives no requests with workload.num_requests={count}: set "
        "workload.num_requests, or correct the source"
    ) from cause
