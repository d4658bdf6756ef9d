"""Bounds of what a workload may say."""

import math
from collections.abc import Sequence
from typing import Any

from wp1.core.errors import ConfigError

# Where the long end of a distribution is cut, unless workload.output_max says: four times the mean.
CUT = 4
# Of recorded traffic; `wp1.workload.trace` says what each is.
TRACE_FORMATS = ("mooncake", "bailian", "azure", "burstgpt", "wp1")


def longest(workload: Any) -> int:
    """Tokens of the longest answer that can be asked for; a trace says its own lengths."""
    if workload.output_distribution == "fixed":
        return workload.output_len
    cut = workload.output_max
    if workload.output_distribution == "uniform":
        most = math.ceil(workload.output_len * (1 + workload.output_spread))
        return most if cut is None else min(most, cut)
    return CUT * workload.output_len if cut is None else cut


def check_list(key: str, values: Sequence[float], of_what: str, least: float, most: float) -> None:
    """Raises ConfigError where a list that cells are made of is empty, or names a value twice or one out of bounds."""
    given = f"{key}=[{','.join(f'{value:.12g}' for value in values)}]"
    if not values:
        raise ConfigError(f"{given} is empty: name {of_what}")
    for value in values:
        # Written so that nan is refused too.
        if not least <= value <= most:
            raise ConfigError(f"{given} has {value:.12g}: name {of_what}, from {least:.12g} to {most:.12g}")
        if list(values).count(value) > 1:
            raise ConfigError(f"{given} has {value:.12g} twice, which would be one cell: name each once")
