"""The machine and the packages that a page of results was measured with, as text."""

from wp1.core.identity import versions
from wp1.machine import hardware


def device() -> str:
    """The names of the GPUs, or the CPU and its cores if there are none."""
    machine = hardware.describe()
    return ", ".join(gpu["name"] for gpu in machine["gpus"]) or f"{machine['cpu']}, {machine['cores']} cores"


def installed() -> str:
    """The versions of Python, wp1 and the packages that figures depend on."""
    return ", ".join(f"{name} {version}" for name, version in versions().items())
