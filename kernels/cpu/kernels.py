"""`CpuKernels`: the CPU's forms put together as one `Kernels`. Must not know models or the engine."""

import torch
from torch import Tensor

from kernels import reference
from kernels.cpu import attention, elementwise, linear, sampling
from kernels.interface import AttentionMetadata, PackedLinear


class CpuKernels:
    """The fast forms of every operation for a CPU. One instance per engine: its attention owns buffers."""

    rms_norm = staticmethod(elementwise.rms_norm)
    add_rms_norm = staticmethod(elementwise.add_rms_norm)
    apply_rope = staticmethod(elementwise.apply_rope)
    silu_and_mul = staticmethod(elementwise.silu_and_mul)
    store_kv = staticmethod(elementwise.store_kv)
    sample = staticmethod(sampling.sample)
    logprobs = staticmethod(sampling.logprobs)

    def __init__(self) -> None:
        self._attention = attention.PagedAttention()

    def preferred_dtype(self, model_dtype: torch.dtype) -> torch.dtype:
        """bfloat16 where the CPU has instructions for it; everything else, float16 too, is computed as float32."""
        if model_dtype == torch.bfloat16 and linear.computes_well_in_bfloat16():
            return torch.bfloat16
        return torch.float32

    def pack_linear(self, weight: Tensor, bias: Tensor | None) -> PackedLinear:
        """A oneDNN-packed copy where there is one for the dtype; `weight` is then not kept."""
        return linear.pack(weight, bias)

    def rope_tables(self, positions: Tensor, inv_freq: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """The definition's: it runs once per step."""
        return reference.rope_tables(positions, inv_freq, scale)

    def plan_attention(self, metadata: AttentionMetadata, block_size: int) -> object:
        """See `attention.plan`."""
        return attention.plan(metadata, block_size)

    def paged_attention(
        self, query: Tensor, key_cache: Tensor, value_cache: Tensor, plan: object, scale: float
    ) -> Tensor:
        """See `attention.PagedAttention`."""
        if not isinstance(plan, attention.CpuAttentionPlan):
            raise TypeError("the plan was not made by plan_attention")
        return self._attention(query, key_cache, value_cache, plan, scale)
