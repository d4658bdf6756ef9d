"""vLLM's CPU worker, with seeded sampling that works as on GPUs (`wp1.serving.sampling`)."""

from vllm.v1.worker.cpu_worker import CPUWorker

from wp1.serving.sampling import SeededSampling


class Worker(SeededSampling, CPUWorker):
    pass
