"""Kernels: the operations that the engine computes with, one definition and up to two fast forms of each.

Knows tensors only. Must not know sequences, requests or the engine.
"""

from kernels.interface import (
    HAS_COUNTS,
    HAS_MASK,
    NUM_SAMPLING_COLUMNS,
    AttentionForm,
    AttentionHeads,
    AttentionMetadata,
    Kernels,
    LogitEdits,
    Logprobs,
    PackedLinear,
    RotateAndStore,
    RowState,
    SamplingColumn,
    SamplingTensors,
    StepInputs,
    StepTables,
)
from kernels.select import KernelOptions, for_device, preferred_dtype

__all__ = [
    "HAS_COUNTS",
    "HAS_MASK",
    "NUM_SAMPLING_COLUMNS",
    "AttentionForm",
    "AttentionHeads",
    "AttentionMetadata",
    "KernelOptions",
    "Kernels",
    "LogitEdits",
    "Logprobs",
    "PackedLinear",
    "RotateAndStore",
    "RowState",
    "SamplingColumn",
    "SamplingTensors",
    "StepInputs",
    "StepTables",
    "for_device",
    "preferred_dtype",
]
