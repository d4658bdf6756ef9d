"""What an engine's memory is taken by, measured in the processes that hold it (`experiment.memory=true`).

What runs where:
  this file      the configuration's side, in wp1's own process
  cpu_worker.py, gpu_worker.py
                 vLLM's worker of that device (worker_cls), with
  accounting.py  the notes that it takes at each step of starting and of serving, from
  host.py        what Linux says of this process's resident memory, or
  device.py      what torch's allocator and NVML say of this process on its GPU, and
  tensors.py     the memory behind a model's weights and its KV cache
  notes.py       in wp1's process again: asks for the notes around every repeat of a cell
"""

from typing import Literal

from wp1.machine import hardware

# When notes are asked for: once an engine is up, and around what is measured.
Moment = Literal["start", "begin", "end"]


def worker_class() -> str:
    """The class that vLLM is to make its workers of, for the device that engines run on here."""
    return f"wp1.serving.memory.{'gpu' if hardware.device_type() == 'cuda' else 'cpu'}_worker.Worker"
