"""`CpuKernels`: the CPU's forms put together as one `Kernels`. Must not know models or the engine."""

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels import reference
from kernels.cpu import attention, elementwise, linear, sampling, step
from kernels.cpu.native import Native
from kernels.interface import AttentionForm, AttentionHeads, AttentionMetadata, PackedLinear, RotateAndStore


class CpuKernels:
    """The compiled forms, for float32 and bfloat16. One instance per engine.

    quantization: "int8" or "int4" linear layers; the head is int8 in both. use_onednn: linear layers in oneDNN's form.
    """

    logprobs = staticmethod(sampling.logprobs)
    write_words = staticmethod(step.write_words)
    count_tokens = staticmethod(step.count_tokens)
    gelu_and_mul = staticmethod(reference.gelu_and_mul)
    rope_tables = staticmethod(reference.rope_tables)

    def __init__(self, native: Native, *, quantization: str = "none", use_onednn: bool = False) -> None:
        native.set_num_threads(torch.get_num_threads())
        self._native = native
        self._quantization = quantization
        self._use_onednn = use_onednn
        self._attention = attention.PagedAttention(native)
        self.sample = sampling.Sampler(native)
        self.expand_step = step.ExpandStep(native)
        rows = elementwise.Elementwise(native)
        self.rms_norm = rows.rms_norm
        self.add_rms_norm = rows.add_rms_norm
        self.silu_and_mul = rows.silu_and_mul

    def pack_linear(self, weights: Sequence[Tensor], bias: Tensor | None, *, is_head: bool = False) -> PackedLinear:
        """Panels of the weights, which are not kept."""
        if self._use_onednn or weights[0].dtype not in (torch.float32, torch.bfloat16):
            return linear.pack_onednn(reference.joined(weights), bias)
        if self._quantization == "none":
            return linear.pack_native(self._native, weights, bias)
        pack = linear.pack_int8 if is_head or self._quantization == "int8" else linear.pack_int4
        return pack(self._native, reference.joined(weights), bias)

    def pack_heads(self, heads: AttentionHeads) -> RotateAndStore:
        """See `elementwise.RotateAndStore`. Raises ValueError for heads that attention.c has no room for."""
        if heads.head_dim > attention.MAX_HEAD_DIM or heads.head_dim % 2:
            raise ValueError(f"a head size of {heads.head_dim} is not supported on a CPU: even, and at most 256")
        if heads.num_heads // heads.num_kv_heads > self._native.max_tile_rows:
            raise ValueError(f"more than {self._native.max_tile_rows} query heads per key/value head are not supported")
        return elementwise.RotateAndStore(self._native, heads)

    def kv_cache_shapes(
        self, num_blocks: int, block_size: int, num_kv_heads: int, head_dim: int
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """[blocks, Hkv, D, block_size] and [blocks, Hkv, block_size, D], D padded; what lies in them: attention.c."""
        size = attention.padded_dim(head_dim)
        return (num_blocks, num_kv_heads, size, block_size), (num_blocks, num_kv_heads, block_size, size)

    def plan_attention(self, metadata: AttentionMetadata) -> object:
        """See `attention.CpuAttentionPlan`."""
        return attention.CpuAttentionPlan(metadata)

    def paged_attention(
        self, query: Tensor, key_cache: Tensor, value_cache: Tensor, plan: object, form: AttentionForm
    ) -> Tensor:
        """See `attention.PagedAttention`. Raises NotImplementedError for a form that is not plain."""
        if not form.is_plain:
            raise NotImplementedError("the CPU's attention has no window, soft cap, sinks or e4m3 cache")
        if not isinstance(plan, attention.CpuAttentionPlan):
            raise TypeError("the plan was not made by plan_attention")
        return self._attention(query, key_cache, value_cache, plan, form.scale)


class EagerCpuKernels(reference.ReferenceKernels):
    """What serves, slowly, where nothing can be compiled, and in float16: the definitions, with oneDNN's products."""

    def pack_linear(self, weights: Sequence[Tensor], bias: Tensor | None, *, is_head: bool = False) -> PackedLinear:
        """See `linear.pack_onednn`."""
        return linear.pack_onednn(reference.joined(weights), bias)
