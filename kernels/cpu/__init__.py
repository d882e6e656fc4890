"""The CPU's fast forms. Knows tensors, oneDNN and caches; must not know sequences or the engine."""

from kernels.cpu.kernels import CpuKernels

__all__ = ["CpuKernels"]
