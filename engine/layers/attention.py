"""Self-attention over the paged cache. What differs from step to step comes in as an argument.

Knows projections, heads and the caches of its layer. Must not know sequences, or which layer it is.
"""

import dataclasses

from torch import Tensor

from engine.layers.config import ModelConfig
from engine.layers.linear import Linear
from engine.layers.weights import Weights
from kernels import AttentionForm, AttentionHeads, Kernels


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
        self._form = AttentionForm(scale=config.head_dim**-0.5)
        self._kernels = kernels
        q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        parts = ((prefix + "q_proj", q_size), (prefix + "k_proj", kv_size), (prefix + "v_proj", kv_size))
        self._qkv = Linear(weights, parts, config.hidden_size, config.attention_bias, kernels)
        out = ((prefix + "o_proj", config.hidden_size),)
        self._out = Linear(weights, out, q_size, config.attention_bias, kernels)
        size = (config.head_dim,)
        self._rotate_and_store = kernels.pack_heads(
            AttentionHeads(
                num_heads=config.num_heads,
                num_kv_heads=config.num_kv_heads,
                head_dim=config.head_dim,
                query_norm=weights.keep(prefix + "q_norm.weight", size) if qk_norm else None,
                key_norm=weights.keep(prefix + "k_norm.weight", size) if qk_norm else None,
                eps=config.rms_norm_eps,
            )
        )

    def __call__(self, x: Tensor, cache: tuple[Tensor, Tensor], step: StepContext) -> Tensor:
        """X [T, hidden_size] to the same shape; writes the tokens' K/V into `cache` first."""
        query = self._rotate_and_store(self._qkv(x), step.tables, cache, step.slot_mapping)
        return self._out(self._kernels.paged_attention(query, *cache, step.plan, self._form))
