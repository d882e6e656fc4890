"""`TritonKernels`: the GPU's forms put together as one `Kernels`. Must not know models or the engine.

Every call only launches: nothing is read back from the device, and no shape depends on what lies there, so that a step
can be captured in a CUDA graph.
"""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.gpu import sampling as gpu_sampling
from kernels.gpu.activation import gelu_and_mul, silu_and_mul
from kernels.gpu.decode_attention import decode_attention
from kernels.gpu.hardware import Hardware
from kernels.gpu.linear import Linear
from kernels.gpu.linear_table import LinearTable
from kernels.gpu.norm import add_rms_norm, rms_norm
from kernels.gpu.prefill_attention import prefill_attention
from kernels.gpu.rope import RotateAndStore, rope_tables
from kernels.gpu.step import expand_step, write_words
from kernels.interface import (
    AttentionForm,
    AttentionHeads,
    AttentionMetadata,
    PackedLinear,
)

MAX_HEAD_DIM = 256


@dataclasses.dataclass(frozen=True, slots=True)
class GpuAttentionPlan:
    """One step's batch: its first `num_decodes` sequences go to the decode kernel, the rest to the prefill kernel."""

    metadata: AttentionMetadata
    num_decodes: int


class TritonKernels:
    """The compiled forms, for float16, bfloat16 and float32. One instance per engine.

    The caches are [blocks, Hkv, block_size, D], so that what one program reads of a block is one contiguous run.
    """

    rms_norm = staticmethod(rms_norm)
    add_rms_norm = staticmethod(add_rms_norm)
    rope_tables = staticmethod(rope_tables)
    silu_and_mul = staticmethod(silu_and_mul)
    gelu_and_mul = staticmethod(gelu_and_mul)
    sample = staticmethod(gpu_sampling.sample)
    logprobs = staticmethod(gpu_sampling.logprobs)
    count_tokens = staticmethod(gpu_sampling.count_tokens)
    expand_step = staticmethod(expand_step)
    write_words = staticmethod(write_words)

    def __init__(self, hardware: Hardware, linear_table: LinearTable | None = None) -> None:
        self._hardware = hardware
        self._linear_table = linear_table or LinearTable.for_hardware(hardware)

    def pack_linear(self, weights: Sequence[Tensor], bias: Tensor | None, *, is_head: bool = False) -> PackedLinear:
        """The weights as they are, joined; which product multiplies them is the table's business."""
        return Linear(weights, bias, self._hardware, self._linear_table)

    def pack_heads(self, heads: AttentionHeads) -> RotateAndStore:
        """See `rope.RotateAndStore`. Raises ValueError for heads that the attention kernels have no room for."""
        if heads.head_dim > MAX_HEAD_DIM or heads.head_dim % 2:
            raise ValueError(f"a head size of {heads.head_dim} is not supported on a GPU: even, and at most 256")
        return RotateAndStore(heads)

    def kv_cache_shapes(
        self, num_blocks: int, block_size: int, num_kv_heads: int, head_dim: int
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """[blocks, Hkv, block_size, D], both."""
        shape = (num_blocks, num_kv_heads, block_size, head_dim)
        return shape, shape

    def plan_attention(self, metadata: AttentionMetadata) -> object:
        """See `GpuAttentionPlan`."""
        num_seqs = metadata.seq_lens.shape[0]
        return GpuAttentionPlan(metadata, num_seqs if metadata.max_query_len == 1 else metadata.num_decodes)

    def paged_attention(
        self, query: Tensor, key_cache: Tensor, value_cache: Tensor, plan: object, form: AttentionForm
    ) -> Tensor:
        """See `decode_attention` and `prefill_attention`; both write into one output."""
        if not isinstance(plan, GpuAttentionPlan):
            raise TypeError("the plan was not made by plan_attention")
        batch, first = plan.metadata, plan.num_decodes
        num_tokens, num_heads, head_dim = query.shape
        out = torch.empty(num_tokens, num_heads * head_dim, dtype=query.dtype, device=query.device)
        caches, hardware = (key_cache, value_cache), self._hardware
        if first > 0:
            lens, table = batch.seq_lens[:first], batch.block_table[:first]
            decode_attention(query[:first], *caches, table, lens, form, hardware, out=out[:first])
        if first < batch.seq_lens.shape[0]:
            starts, lens, table = batch.query_start_loc[first:], batch.seq_lens[first:], batch.block_table[first:]
            prefill_attention(query, *caches, starts, lens, table, form, hardware, out=out)
        return out
