"""The one place where the device chooses the kernels, once, at start. Must not know models or the engine."""

import torch

from kernels.cpu import CpuKernels
from kernels.interface import Kernels
from kernels.reference import ReferenceKernels


def for_device(device: torch.device) -> Kernels:
    """The fastest complete set of kernels for `device`; the eager reference where it has no forms of its own."""
    return CpuKernels() if device.type == "cpu" else ReferenceKernels()
