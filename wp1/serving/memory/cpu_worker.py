"""vLLM's worker on a CPU, taking notes of its resident memory."""

from vllm.v1.worker.cpu_worker import CPUWorker

from wp1.serving.memory.accounting import Accounting
from wp1.serving.memory.host import HostMeter


class Worker(Accounting, CPUWorker):
    meter_class = HostMeter
