"""When requests are due: an open loop's arrival times as offsets in seconds from the start of a cell's repeat.

They follow from the rate, the process and a seed alone, and are kept whatever the engines do: an open loop stands for
users who do not know how busy the service is.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Schedule:
    """Offsets in seconds, ascending from 0, one a request; those before `ramp_s` arrive while the rate still grows."""

    offsets: np.ndarray
    ramp_s: float = 0.0

    def __len__(self) -> int:
        return len(self.offsets)


def schedule(workload: Any, count: int, rate: float, seed: int) -> Schedule:
    """`count` arrivals at `rate` requests/s by `workload.arrivals`. The same seed gives the same on any machine.

    poisson    exponential gaps: many users who do not know of each other
    constant   equal gaps
    gamma      gaps of mean 1/rate and shape `workload.burstiness`: 1 is Poisson, less comes in bursts, more is evener.
               The coefficient of variation of the gaps is 1/sqrt(burstiness)
    ramp       Poisson with a rate that grows evenly from `workload.ramp_from` to `rate` within `workload.ramp_s`
               seconds, and stays there; without ramp_s it grows until the last request
    """
    process = workload.arrivals
    rng = np.random.default_rng(seed)
    if process == "constant":
        gaps = np.full(count, 1.0 / rate)
    elif process == "gamma":
        gaps = rng.gamma(workload.burstiness, 1.0 / (rate * workload.burstiness), count)
    else:
        gaps = rng.exponential(1.0 / rate, count)
    offsets = np.cumsum(gaps) - gaps[0]
    if process != "ramp":
        return Schedule(offsets)
    return _ramped(offsets * rate, rate, workload.ramp_from, workload.ramp_s)


def _ramped(arrivals: np.ndarray, rate: float, start: float, ramp_s: float | None) -> Schedule:
    """Turns arrivals of a process of rate 1 (`arrivals`: when each is due) into those of a rate that grows.

    By the inverse of the expected number of arrivals until t, which is start t + (rate - start) t² / 2 ramp_s in the
    ramp (Çinlar's method for a non-homogeneous Poisson process).
    """
    if ramp_s is None:
        ramp_s = 2 * max(float(arrivals[-1]), 1.0) / (start + rate)
    in_ramp = (start + rate) / 2 * ramp_s  # requests expected until its end
    slope = (rate - start) / ramp_s
    # The root of slope/2 t² + start t = arrivals, in the form that is exact where the slope is zero.
    below = start + np.sqrt(start**2 + 2 * slope * np.minimum(arrivals, in_ramp))
    grown = np.divide(2 * arrivals, below, out=np.zeros_like(arrivals), where=below > 0)
    return Schedule(np.where(arrivals < in_ramp, grown, ramp_s + (arrivals - in_ramp) / rate), ramp_s)
