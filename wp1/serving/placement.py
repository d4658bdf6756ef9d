"""Assigns devices to the engines of a run. Pure functions."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from wp1.core.errors import ConfigError


@dataclass(frozen=True)
class Place:
    """The devices of one engine: GPU indices, or CPU cores (None: vLLM chooses)."""

    gpus: list[int] = field(default_factory=list)
    cores: list[int] | None = None
    sharing: int = 1  # number of engines, including this one, on the most shared of its GPUs
    peers: list[int] = field(default_factory=list)  # GPUs of other engines, whose memory this one reads

    def names(self) -> list[str]:
        """The devices' names in run_metadata.json."""
        if self.gpus:
            return [f"cuda:{gpu}" for gpu in self.gpus]
        return ["cpu" if self.cores is None else "cpu cores " + ",".join(map(str, self.cores))]


def places(
    tensor_parallel: Sequence[int], devices: Sequence[int] | str, gpus_there: Sequence[int], cores: Sequence[int]
) -> list[Place]:
    """A place for each engine. tensor_parallel: number of GPUs of each.

    devices: GPU indices for each engine in turn, or "auto": each engine gets its own GPUs if there are enough, or else
    engines share them evenly. Without a GPU, engines split the CPU's cores. Raises ConfigError if one engine needs more
    GPUs than there are, or if `devices` does not match the engines.
    """
    if not gpus_there:
        return [Place(cores=own) for own in core_sets(len(tensor_parallel), cores)]
    if max(tensor_parallel) > len(gpus_there):
        raise ConfigError(
            f"an engine asks for {max(tensor_parallel)} GPUs and there are {len(gpus_there)}: lower "
            "scheduler.tensor_parallel or scheduler.decode_tensor_parallel"
        )
    if isinstance(devices, str):
        needed = sum(tensor_parallel)
        chosen = [gpus_there[n % len(gpus_there)] for n in range(needed)]
    else:
        chosen = list(devices)
    sets = []
    for count in tensor_parallel:
        own, chosen = chosen[:count], chosen[count:]
        if len(own) != count or len(set(own)) != count:
            raise ConfigError(
                f"scheduler.devices={devices} does not give every engine its own {count} GPUs: name "
                f"{sum(tensor_parallel)}, for each engine in turn, or auto"
            )
        sets.append(own)
    if chosen:
        raise ConfigError(
            f"scheduler.devices={devices} names more GPUs than the engines use: name {sum(tensor_parallel)}, or auto"
        )
    engines_on = Counter(gpu for own in sets for gpu in own)
    return [Place(gpus=own, sharing=max(engines_on[gpu] for gpu in own)) for own in sets]


def check_equal(arms: Mapping[str, Sequence[Place]]) -> None:
    """Raises ConfigError unless all arms use the same number of GPUs, as a fair comparison of speed requires.

    It does not matter how many engines share a GPU. Without GPUs, all arms use the same host.
    """
    gpus = {arm: sorted({gpu for place in engines for gpu in place.gpus}) for arm, engines in arms.items()}
    if len({len(indices) for indices in gpus.values()}) > 1:
        each = ", ".join(f"arms.{arm} gets GPU {' and '.join(map(str, indices))}" for arm, indices in gpus.items())
        raise ConfigError(
            f"arms are compared on equal devices, and {each}: change replicas, prefill, decode or tensor_parallel, or "
            "let engines share, as in arms.disagg.devices=[0,0] with arms.agg.devices=[0]"
        )


def core_sets(engines: int, cores: Sequence[int]) -> list[list[int] | None]:
    """CPU cores for each engine: equal shares, or None (vLLM chooses) if there is only one engine.

    If there are more engines than cores, each gets one core, shared with others.
    """
    if engines == 1:
        return [None]
    share = max(1, len(cores) // engines)
    return [[cores[(n * share + k) % len(cores)] for k in range(share)] for n in range(engines)]
