"""Kernels: the operations that the engine computes with, one definition and up to two fast forms of each.

Knows tensors only. Must not know sequences, requests or the engine.
"""

from kernels.interface import (
    AllowedTokens,
    AttentionForm,
    AttentionHeads,
    AttentionMetadata,
    Kernels,
    Logprobs,
    PackedLinear,
    Penalties,
    RotateAndStore,
    SamplingTensors,
    TokenBias,
)
from kernels.select import KernelOptions, for_device, preferred_dtype

__all__ = [
    "AllowedTokens",
    "AttentionForm",
    "AttentionHeads",
    "AttentionMetadata",
    "KernelOptions",
    "Kernels",
    "Logprobs",
    "PackedLinear",
    "Penalties",
    "RotateAndStore",
    "SamplingTensors",
    "TokenBias",
    "for_device",
    "preferred_dtype",
]
