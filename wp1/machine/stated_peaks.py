"""Peak performance of GPUs from NVIDIA's data sheets: dense BF16 or FP16 FLOP/s of tensor cores, memory bytes/s.

Data sheets give FLOP/s with structured sparsity, which dense models cannot use; the values here are half of that. Names
are NVML's, without the leading "NVIDIA".
"""

from typing import NamedTuple


class Stated(NamedTuple):
    """A row of the table."""

    flops: float  # FLOP/s, dense, 16-bit floats with 32-bit accumulation
    bytes_per_s: float
    source: str


H100 = "NVIDIA H100 Tensor Core GPU data sheet"
H200 = "NVIDIA H200 Tensor Core GPU data sheet"
A100 = "NVIDIA A100 Tensor Core GPU data sheet"

# If several names match, the longest wins: an "H200 NVL" is not an "H200".
STATED = {
    "B200": Stated(2250e12, 8.0e12, "NVIDIA Blackwell architecture technical brief, HGX B200"),
    "H200": Stated(989.4e12, 4.8e12, f"{H200}, SXM"),
    "H200 NVL": Stated(835.5e12, 4.8e12, f"{H200}, NVL"),
    "H100 80GB HBM3": Stated(989.4e12, 3.35e12, f"{H100}, SXM"),
    "H100 PCIe": Stated(756.5e12, 2.0e12, f"{H100}, PCIe"),
    "H100 NVL": Stated(835.5e12, 3.9e12, f"{H100}, NVL"),
    "A100-SXM4-80GB": Stated(312e12, 2.039e12, f"{A100}, 80 GB SXM"),
    "A100 80GB PCIe": Stated(312e12, 1.935e12, f"{A100}, 80 GB PCIe"),
    "A100-SXM4-40GB": Stated(312e12, 1.555e12, f"{A100}, 40 GB SXM"),
    "A100-PCIE-40GB": Stated(312e12, 1.555e12, f"{A100}, 40 GB PCIe"),
    "A30": Stated(165e12, 0.933e12, "NVIDIA A30 Tensor Core GPU data sheet"),
    "A10": Stated(125e12, 0.600e12, "NVIDIA A10 Tensor Core GPU data sheet"),
    "L40S": Stated(362.05e12, 0.864e12, "NVIDIA L40S data sheet"),
    "L40": Stated(181.05e12, 0.864e12, "NVIDIA L40 data sheet"),
    "L4": Stated(121e12, 0.300e12, "NVIDIA L4 Tensor Core GPU data sheet"),
    "GeForce RTX 4090": Stated(165.2e12, 1.008e12, "NVIDIA Ada GPU architecture white paper"),
}


def stated(gpu: str) -> Stated | None:
    """Peaks of a GPU. gpu: its name by NVML, such as "NVIDIA H100 80GB HBM3". None if it is not in the table."""
    bare = gpu.removeprefix("NVIDIA ").strip()
    matches = [name for name in STATED if bare == name or bare.startswith(f"{name} ")]
    return STATED[max(matches, key=len)] if matches else None
