"""The CPU's fast forms. Knows tensors, C, oneDNN and caches; must not know sequences or the engine."""

from kernels.cpu.kernels import CpuKernels, EagerCpuKernels
from kernels.cpu.linear import computes_well_in_bfloat16, has_matrix_unit
from kernels.cpu.native import load as load_native

__all__ = ["CpuKernels", "EagerCpuKernels", "computes_well_in_bfloat16", "has_matrix_unit", "load_native"]
