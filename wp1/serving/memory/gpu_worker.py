"""vLLM's GPU worker, which also notes its share of the GPU's memory."""

from vllm.v1.worker.gpu_worker import Worker as GPUWorker

from wp1.serving.memory.accounting import Accounting
from wp1.serving.memory.device import DeviceMeter


class Worker(Accounting, GPUWorker):
    meter_class = DeviceMeter
