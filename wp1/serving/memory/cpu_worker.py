"""wp1's CPU worker, which also notes its resident memory."""

from wp1.serving import cpu_worker
from wp1.serving.memory.accounting import Accounting
from wp1.serving.memory.host import HostMeter


class Worker(Accounting, cpu_worker.Worker):
    meter_class = HostMeter
