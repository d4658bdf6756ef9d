"""Breaks down an engine's memory use, measured in the processes that hold it (`experiment.memory=true`).

In wp1's own process:
  this file      settings
  notes.py       asks for the workers' notes around every repeat of a cell
In the engines' workers:
  cpu_worker.py, gpu_worker.py
                 vLLM's worker for the device (worker_cls)
  accounting.py  the notes taken at each stage of the start and of serving
  host.py        resident memory of this process, from Linux
  device.py      memory of this process on its GPU, from torch's allocator and NVML
  tensors.py     the memory behind a model's weights and its KV cache
"""

from typing import Literal

from wp1.machine import hardware

# When notes are requested: once an engine is up, and before and after each repeat.
Moment = Literal["start", "begin", "end"]


def worker_class() -> str:
    """The class of vLLM's workers (worker_cls) for the device that engines use here."""
    return f"wp1.serving.memory.{'gpu' if hardware.device_type() == 'cuda' else 'cpu'}_worker.Worker"
