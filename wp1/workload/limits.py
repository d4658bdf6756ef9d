"""Bounds for the settings of a workload."""

import math
from collections.abc import Sequence
from typing import Any

from wp1.core.errors import ConfigError

# A distribution of output lengths is cut at this multiple of its mean, unless workload.output_max is set.
CUT = 4
# Formats of recorded traffic; `wp1.workload.trace_formats` describes each.
TRACE_FORMATS = ("mooncake", "bailian", "azure", "burstgpt", "wp1")


def longest(workload: Any) -> int:
    """Tokens of the longest answer that the workload can request. Does not apply to a trace, which has its own."""
    if workload.output_distribution == "fixed":
        return workload.output_len
    cut = workload.output_max
    if workload.output_distribution == "uniform":
        most = math.ceil(workload.output_len * (1 + workload.output_spread))
        return most if cut is None else min(most, cut)
    return CUT * workload.output_len if cut is None else cut


def check_list(key: str, values: Sequence[float], of_what: str, least: float, most: float) -> None:
    """Raises ConfigError if a list that defines cells is empty, repeats a value, or has one out of bounds."""
    setting = f"{key}=[{','.join(f'{value:.12g}' for value in values)}]"
    if not values:
        raise ConfigError(f"{setting} is empty: name {of_what}")
    for value in values:
        # Written so that nan is refused too.
        if not least <= value <= most:
            raise ConfigError(f"{setting} has {value:.12g}: name {of_what}, from {least:.12g} to {most:.12g}")
        if list(values).count(value) > 1:
            raise ConfigError(f"{setting} has {value:.12g} twice, which would be one cell: name each once")
