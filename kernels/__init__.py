"""Kernels: the operations that the engine computes with, one definition and up to two fast forms of each.

Knows tensors only. Must not know sequences, requests or the engine.
"""

from kernels.interface import AttentionHeads, AttentionMetadata, Kernels, PackedLinear, RotateAndStore, SamplingTensors
from kernels.select import KernelOptions, for_device, preferred_dtype

__all__ = [
    "AttentionHeads",
    "AttentionMetadata",
    "KernelOptions",
    "Kernels",
    "PackedLinear",
    "RotateAndStore",
    "SamplingTensors",
    "for_device",
    "preferred_dtype",
]
