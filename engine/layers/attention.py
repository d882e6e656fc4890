"""Self-attention over the paged cache. What differs from step to step comes in as an argument.

Knows projections, heads and the caches of its layer. Must not know sequences, or which layer it is.
"""

import dataclasses

import torch
from torch import Tensor

from engine.layers.config import ModelConfig
from engine.layers.linear import Linear
from engine.layers.weights import Weights
from kernels import Kernels


@dataclasses.dataclass(frozen=True, slots=True)
class StepContext:
    """What all layers of one step share.

    tables: rotary cosines and sines of the tokens. slot_mapping: [T], where their K/V is written.
    plan: what the kernels made of the batch's `AttentionMetadata`.
    """

    tables: tuple[Tensor, Tensor]
    slot_mapping: Tensor
    plan: object


class Attention:
    """Grouped-query attention with rotary positions.

    qk_norm: RMS norm, with one learned weight for query heads and one for key heads, before the rotation (Qwen3).
    """

    def __init__(self, config: ModelConfig, weights: Weights, prefix: str, kernels: Kernels, *, qk_norm: bool) -> None:
        self._num_heads, self._num_kv_heads = config.num_heads, config.num_kv_heads
        self._head_dim = config.head_dim
        self._eps = config.rms_norm_eps
        self._scale = config.head_dim**-0.5
        self._kernels = kernels
        q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        parts = ((prefix + "q_proj", q_size), (prefix + "k_proj", kv_size), (prefix + "v_proj", kv_size))
        self._qkv = Linear(weights, parts, config.hidden_size, config.attention_bias, kernels)
        out = ((prefix + "o_proj", config.hidden_size),)
        self._out = Linear(weights, out, q_size, config.attention_bias, kernels)
        # One row per head, so that query and key heads, which lie side by side, are normalised in one call.
        self._qk_norm: Tensor | None = None
        if qk_norm:
            query = weights.take(prefix + "q_norm.weight", (config.head_dim,)).expand(config.num_heads, -1)
            key = weights.take(prefix + "k_norm.weight", (config.head_dim,)).expand(config.num_kv_heads, -1)
            self._qk_norm = torch.cat((query, key))

    def __call__(self, x: Tensor, cache: tuple[Tensor, Tensor], step: StepContext) -> Tensor:
        """X [T, hidden_size] to the same shape; writes the tokens' K/V into `cache` first."""
        kernels = self._kernels
        num_tokens = x.shape[0]
        qkv = self._qkv(x)
        num_rotated = self._num_heads + self._num_kv_heads
        heads = qkv.view(num_tokens, num_rotated + self._num_kv_heads, self._head_dim)
        rotated, value = heads[:, :num_rotated], heads[:, num_rotated:]
        if self._qk_norm is not None:
            rotated = kernels.rms_norm(rotated, self._qk_norm, self._eps)
        rotated = kernels.apply_rope(rotated, step.tables)
        query, key = rotated[:, : self._num_heads], rotated[:, self._num_heads :]
        key_cache, value_cache = cache
        kernels.store_kv(key, value, key_cache, value_cache, step.slot_mapping)
        return self._out(kernels.paged_attention(query, key_cache, value_cache, step.plan, self._scale))
