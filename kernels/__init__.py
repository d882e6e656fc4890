"""Kernels: the operations that the engine computes with, one definition and up to two fast forms of each.

Knows tensors only. Must not know sequences, requests or the engine.
"""

from kernels.interface import (
    AllowedTokens,
    AttentionMetadata,
    Kernels,
    Logprobs,
    PackedLinear,
    Penalties,
    SamplingTensors,
    TokenBias,
)
from kernels.select import for_device

__all__ = [
    "AllowedTokens",
    "AttentionMetadata",
    "Kernels",
    "Logprobs",
    "PackedLinear",
    "Penalties",
    "SamplingTensors",
    "TokenBias",
    "for_device",
]
