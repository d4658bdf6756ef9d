"""Which devices each engine of a run gets. Pure."""

from collections.abc import Sequence


def gpu_indices(
    engines: int, tensor_parallel: int, devices: Sequence[int] | str, gpus_there: Sequence[int]
) -> list[list[int]]:
    """GPU indices for each engine, `tensor_parallel` of them, in turn; [] for each where there is no GPU."""
    if not gpus_there:
        return [[] for _ in range(engines)]
    chosen = list(gpus_there if isinstance(devices, str) else devices)
    return [chosen[n * tensor_parallel : (n + 1) * tensor_parallel] for n in range(engines)]


def core_sets(engines: int, cores: Sequence[int]) -> list[list[int] | None]:
    """CPU cores for each engine: vLLM's own choice for one engine, else equal shares.

    With more engines than cores, an engine gets one core and shares it.
    """
    if engines == 1:
        return [None]
    share = max(1, len(cores) // engines)
    return [[cores[(n * share + k) % len(cores)] for k in range(share)] for n in range(engines)]
