"""When requests are due: an open loop's arrival times as offsets in seconds from the start of a cell's repeat.

Arrivals depend only on the rate, the process and a seed, never on the engines: an open loop models users who do not
know how busy the service is.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from wp1.core.errors import ConfigError, unforeseen
from wp1.core.outside import named
from wp1.core.parts import Setting
from wp1.workload import declared_keys

if TYPE_CHECKING:
    import numpy as np

# Parameters of a process from outside wp1 that wp1 fills in; it need not have all of them.
GIVEN = ("rng", "count", "rate", "workload")


@dataclass(frozen=True)
class Schedule:
    """One offset per request, in seconds, ascending from 0; those before `ramp_s` arrive while the rate still grows."""

    offsets: "np.ndarray"
    ramp_s: float = 0.0

    def __len__(self) -> int:
        return len(self.offsets)


@dataclass(frozen=True)
class Process:
    """An arrival process of an open loop; each is a row of PROCESSES.

    arrive: the Schedule for a random generator, a number of requests, a rate in requests/s, and the `workload` group.
    keys: keys of `workload` that only this process reads, with their defaults.
    function: that of a process from outside wp1, whose parameters but GIVEN are settings of its own.
    """

    arrive: "Callable[[np.random.Generator, int, float, Any], Schedule]"
    keys: Mapping[str, Any] = field(default_factory=dict)
    function: Callable[..., Any] | None = None

    def settings(self) -> dict[str, Setting]:
        """The settings that this process adds to the keys of `workload`, by name."""
        return {} if self.function is None else declared_keys.declared(self.function, GIVEN)


def schedule(workload: Any, count: int, rate: float, seed: int) -> Schedule:
    """`count` arrivals at `rate` requests/s under `workload.arrivals`. The same seed gives the same on any machine.

    Raises ConfigError if a process from outside wp1 fails or returns something else.
    """
    import numpy as np

    return process_of(workload.arrivals).arrive(np.random.default_rng(seed), count, rate, workload)


def _after(gaps: "np.ndarray") -> Schedule:
    return Schedule(gaps.cumsum() - gaps[0])


def _poisson(rng: "np.random.Generator", count: int, rate: float, workload: Any) -> Schedule:
    """Exponential gaps: many independent users."""
    return _after(rng.exponential(1.0 / rate, count))


def _constant(rng: "np.random.Generator", count: int, rate: float, workload: Any) -> Schedule:
    """Equal gaps."""
    import numpy as np

    return _after(np.full(count, 1.0 / rate))


def _gamma(rng: "np.random.Generator", count: int, rate: float, workload: Any) -> Schedule:
    """Gamma gaps of mean 1/rate and shape `workload.burstiness`: 1 is Poisson, below 1 is burstier, above 1 more even.

    The coefficient of variation of the gaps is 1/sqrt(burstiness).
    """
    return _after(rng.gamma(workload.burstiness, 1.0 / (rate * workload.burstiness), count))


def _ramp(rng: "np.random.Generator", count: int, rate: float, workload: Any) -> Schedule:
    """Poisson with a rate that grows linearly from `workload.ramp_from` to `rate` within `workload.ramp_s` seconds.

    After that the rate is constant. Without ramp_s it grows until the last request.
    """
    steady = _poisson(rng, count, rate, workload)
    return _ramped(steady.offsets * rate, rate, workload.ramp_from, workload.ramp_s)


def _ramped(arrivals: "np.ndarray", rate: float, start: float, ramp_s: float | None) -> Schedule:
    """Maps arrival times of a process of rate 1 (`arrivals`) to those of a process whose rate grows.

    Inverts the expected number of arrivals until t, which is start t + (rate - start) t² / 2 ramp_s during the ramp
    (Çinlar's method for a non-homogeneous Poisson process).
    """
    import numpy as np

    if ramp_s is None:
        ramp_s = 2 * max(float(arrivals[-1]), 1.0) / (start + rate)
    in_ramp = (start + rate) / 2 * ramp_s  # requests expected during the ramp
    slope = (rate - start) / ramp_s
    # The root of slope/2 t² + start t = arrivals, in the form that stays exact when the slope is zero.
    denominator = start + np.sqrt(start**2 + 2 * slope * np.minimum(arrivals, in_ramp))
    grown = np.divide(2 * arrivals, denominator, out=np.zeros_like(arrivals), where=denominator > 0)
    return Schedule(np.where(arrivals < in_ramp, grown, ramp_s + (arrivals - in_ramp) / rate), ramp_s)


PROCESSES: Mapping[str, Process] = {
    "poisson": Process(_poisson),
    "constant": Process(_constant),
    "gamma": Process(_gamma, {"burstiness": 1.0}),
    "ramp": Process(_ramp, {"ramp_from": 0.0, "ramp_s": None}),
}


def process_of(name: str) -> Process:
    """The process that `workload.arrivals` names: a row of PROCESSES, or a function by its dotted name.

    Raises ConfigError if the name is unknown or cannot be imported.
    """
    if name in PROCESSES:
        return PROCESSES[name]
    setting = f"workload.arrivals={name}"
    choices = f"set workload.arrivals to {' or '.join(PROCESSES)}, or to a package.module.function of your own"
    function = named(setting, name, f"is not known: {choices}")
    if not inspect.isfunction(function):
        raise ConfigError(f"{setting} is not a function: name one that returns a wp1.workload.arrivals.Schedule")
    return Process(partial(_from_outside, setting, function), function=function)


def _from_outside(
    setting: str, function: Callable[..., Any], rng: "np.random.Generator", count: int, rate: float, workload: Any
) -> Schedule:
    given = {"rng": rng, "count": count, "rate": rate, "workload": workload}
    names = inspect.signature(function).parameters
    taken = {name: value for name, value in given.items() if name in names}
    try:
        made = function(**taken, **declared_keys.values(function, workload, GIVEN))
    except Exception as error:  # anything may go wrong in a function of somebody else's
        raise ConfigError(
            f"{setting} failed for {count} requests at {rate:g} requests/s ({unforeseen(error)})"
        ) from error
    if not isinstance(made, Schedule) or not _is_ascending(made.offsets, count):
        raise ConfigError(
            f"{setting} did not return a wp1.workload.arrivals.Schedule of {count} offsets in seconds, ascending from "
            "0 or later, as a NumPy array"
        )
    return made


def _is_ascending(offsets: Any, count: int) -> bool:
    import numpy as np

    is_array = isinstance(offsets, np.ndarray) and offsets.shape == (count,) and offsets.dtype.kind in "fiu"
    return is_array and bool(np.isfinite(offsets).all() and (offsets >= 0).all() and (np.diff(offsets) >= 0).all())
