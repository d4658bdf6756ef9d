"""Peak performance of this machine's device: from a table of data sheets, or measured and cached."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from wp1.core.errors import ConfigError
from wp1.core.paths import cache_folder
from wp1.machine import hardware
from wp1.machine.stated_peaks import stated

DTYPE = "bfloat16"
# Long enough for clocks to rise, short enough to run before an experiment.
SECONDS_EACH = 0.7


@dataclass(frozen=True)
class Peaks:
    """Peak performance of one device: a GPU, or all cores of a host."""

    device: str
    flops: float  # FLOP/s in 16-bit floats
    bytes_per_s: float
    kind: str  # stated or measured
    source: str


def device_name(described: Mapping[str, Any]) -> str:
    """The device's name in the cache: the GPU, or the CPU with its cores. described: from `hardware.describe`."""
    gpus = described["gpus"] if described["device_type"] == "cuda" else []
    return gpus[0]["name"] if gpus else f"{described['cpu']}, {described['cores']} cores"


def known(described: Mapping[str, Any]) -> Peaks | None:
    """Peaks of the device that engines would use: from the table, else from the cache; None if unknown."""
    name = device_name(described)
    table = stated(name)
    if table is not None:
        return Peaks(name, table.flops, table.bytes_per_s, "stated", table.source)
    try:
        cached = json.loads((cache_folder() / "peaks.json").read_text(encoding="utf-8"))
        return Peaks(**cached[name]) if name in cached else None
    except (OSError, ValueError, TypeError):
        return None


def measured_apart(timeout_s: float = 120) -> Peaks | None:
    """Measures in a separate process, so that nothing stays on the device; None if that fails."""
    command = [sys.executable, "-m", "wp1.peaks", "--json"]
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=timeout_s)
        return Peaks(**json.loads(done.stdout.strip().splitlines()[-1]))
    except (OSError, subprocess.SubprocessError, ValueError, TypeError, IndexError):
        return None


def for_run(described: Mapping[str, Any], measure_missing: bool, tell: Callable[[str], None]) -> dict[str, Any] | None:
    """The peaks in the form of run_metadata.json, or None. measure_missing: measure them now if they are unknown."""
    peaks = known(described)
    if peaks is None and measure_missing:
        tell("measuring the device's peak performance (once)")
        peaks = measured_apart()
    return None if peaks is None else asdict(peaks)


def measure(name: str) -> Peaks:
    """Measures the first visible GPU, or the cores that this process may use, for some seconds."""
    import torch

    if hardware.device_type() == "cuda":
        device, sizes, elements = torch.device("cuda:0"), (4096, 8192, 16384), 1 << 28
    else:
        device, sizes, elements = torch.device("cpu"), (512, 1024, 2048), 1 << 26
        torch.set_num_threads(len(hardware.cores()))

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    flops = []
    for size in sizes:
        a, b = (torch.randn(size, size, device=device).to(torch.bfloat16) for _ in range(2))
        flops.append(2.0 * size**3 / _best_seconds(lambda a=a, b=b: torch.matmul(a, b), wait))
        del a, b
    source, target = (torch.rand(elements, device=device) for _ in range(2))
    size = source.numel() * source.element_size()
    copied = 2 * size / _best_seconds(lambda: target.copy_(source), wait)
    read = 2 * size / _best_seconds(lambda: torch.dot(source, target), wait)
    return Peaks(name, max(flops), max(copied, read), "measured", "python -m wp1.peaks")


def _best_seconds(work: Callable[[], Any], wait: Callable[[], None]) -> float:
    """The shortest time of a call. Calls are timed one by one, so that a slow moment affects only some of them."""
    work()
    wait()
    best, deadline = float("inf"), time.perf_counter() + SECONDS_EACH
    while time.perf_counter() < deadline:
        begin = time.perf_counter()
        work()
        wait()
        best = min(best, time.perf_counter() - begin)
    return best


def keep(peaks: Peaks) -> Peaks:
    """Adds the peaks to the cache and returns the device's cached peaks.

    The higher of the new and the cached figures is kept, because other work on the machine can only lower a
    measurement. Raises ConfigError if the cache cannot be written.
    """
    from filelock import FileLock

    path = cache_folder() / "peaks.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            try:
                cached = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                cached = {}
            peaks = _highest(peaks, cached.get(peaks.device))
            work = path.with_suffix(".tmp")
            work.write_text(json.dumps(cached | {peaks.device: asdict(peaks)}, indent=2) + "\n", encoding="utf-8")
            work.replace(path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror}): set WP1_CACHE to another folder") from error
    return peaks


def _highest(peaks: Peaks, before: Any) -> Peaks:
    try:
        old = Peaks(**before)
    except TypeError:  # None, or not in our format
        return peaks
    return replace(peaks, flops=max(peaks.flops, old.flops), bytes_per_s=max(peaks.bytes_per_s, old.bytes_per_s))
