"""Answer lengths in tokens: fixed, or drawn from a distribution around `workload.output_len`."""

import math
from typing import Any

from wp1.workload.limits import longest


def outputs(workload: Any, count: int, seed: int) -> list[int]:
    """`count` lengths, each between 1 token and `longest(workload)`. The same seed gives the same lengths.

    uniform     between output_len (1 - output_spread) and output_len (1 + output_spread)
    normal      mean output_len, with a standard deviation of output_spread x output_len
    lognormal   the same mean and standard deviation; most are short and a few long, as in chat services

    Lengths outside the limits are clipped to them, so a wide spread moves the mean a little.
    """
    import numpy as np

    mean, spread = workload.output_len, workload.output_spread
    rng = np.random.default_rng(seed)
    if workload.output_distribution == "uniform":
        drawn = rng.uniform(mean * (1 - spread), mean * (1 + spread), count)
    elif workload.output_distribution == "normal":
        drawn = rng.normal(mean, mean * spread, count)
    elif workload.output_distribution == "lognormal":
        sigma = math.sqrt(math.log1p(spread**2))
        drawn = mean * np.exp(sigma * rng.standard_normal(count) - sigma**2 / 2)
    else:
        return [mean] * count
    return np.clip(np.rint(drawn), 1, longest(workload)).astype(int).tolist()
