"""What a page of results says of the machine and the packages that it was measured with."""

from wp1.core.identity import versions
from wp1.machine import hardware


def device() -> str:
    """The GPUs by name; without any, the CPU and its cores."""
    machine = hardware.describe()
    return ", ".join(gpu["name"] for gpu in machine["gpus"]) or f"{machine['cpu']}, {machine['cores']} cores"


def installed() -> str:
    """Python, wp1 and the packages that figures depend on, with their versions."""
    return ", ".join(f"{name} {version}" for name, version in versions().items())
