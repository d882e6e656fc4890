"""Kernels: the operations that the engine computes with, one definition and up to two fast forms of each.

Knows tensors only. Must not know sequences, requests or the engine.
"""

from kernels.interface import AttentionMetadata, Kernels, PackedLinear, SamplingTensors
from kernels.select import for_device

__all__ = ["AttentionMetadata", "Kernels", "PackedLinear", "SamplingTensors", "for_device"]
