"""When requests are due, as offsets from the start of a cell in seconds."""

import numpy as np


def offsets(count: int, rate: float, process: str, seed: int) -> list[float]:
    """`count` arrival times at `rate` requests/s, ascending, the first at 0.

    process: "poisson" (exponential gaps) or "constant". The same seed gives the same schedule on any machine.
    """
    if process == "constant":
        gaps = np.full(count, 1.0 / rate)
    else:
        gaps = np.random.default_rng(seed).exponential(1.0 / rate, count)
    return [float(t) for t in np.cumsum(gaps) - gaps[0]]
