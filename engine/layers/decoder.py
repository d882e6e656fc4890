"""The pre-norm decoder that Llama and its relatives share: embedding, layers of attention and MLP, norm, head.

A family is this with its own options; see `engine.models`. Must not know sequences, scheduling or files.
"""

from collections.abc import Sequence

from torch import Tensor

from engine.layers.attention import Attention, StepContext
from engine.layers.config import ModelConfig
from engine.layers.linear import Embedding, LMHead
from engine.layers.mlp import GatedMLP
from engine.layers.norm import RMSNorm
from engine.layers.rotary import RotaryEmbedding
from engine.layers.weights import Weights
from kernels import AttentionMetadata, Kernels

KVCache = list[tuple[Tensor, Tensor]]


class DecoderLayer:
    """x += attention(norm(x)); x += mlp(norm(x)). Each addition is left to the norm that follows it."""

    def __init__(self, config: ModelConfig, weights: Weights, prefix: str, kernels: Kernels, *, qk_norm: bool) -> None:
        size, eps = config.hidden_size, config.rms_norm_eps
        self._attention_norm = RMSNorm(weights, prefix + "input_layernorm", size, eps, kernels)
        self._attention = Attention(config, weights, prefix + "self_attn.", kernels, qk_norm=qk_norm)
        self._mlp_norm = RMSNorm(weights, prefix + "post_attention_layernorm", size, eps, kernels)
        self._mlp = GatedMLP(config, weights, prefix + "mlp.", kernels)

    def __call__(
        self, x: Tensor, residual: Tensor | None, cache: tuple[Tensor, Tensor], step: StepContext
    ) -> tuple[Tensor, Tensor]:
        """(last part, sum without it), each [T, hidden_size]. The first layer has no sum yet: None."""
        if residual is None:
            x, residual = self._attention_norm(x), x
        else:
            x, residual = self._attention_norm.add(x, residual)
        x, residual = self._mlp_norm.add(self._attention(x, cache, step), residual)
        return self._mlp(x), residual


class CausalLM:
    """A decoder with a language-model head. Weight names are those of transformers' LlamaForCausalLM."""

    def __init__(self, config: ModelConfig, weights: Weights, kernels: Kernels, *, qk_norm: bool = False) -> None:
        self._kernels = kernels
        self._embedding = Embedding(weights, "model.embed_tokens", config.vocab_size, config.hidden_size)
        self._rotary = RotaryEmbedding(config.rope, config.head_dim, kernels, self._embedding.table.device)
        self._layers = [
            DecoderLayer(config, weights, f"model.layers.{i}.", kernels, qk_norm=qk_norm)
            for i in range(config.num_layers)
        ]
        self._norm = RMSNorm(weights, "model.norm", config.hidden_size, config.rms_norm_eps, kernels)
        if config.tie_word_embeddings:
            table: Sequence[Tensor] = [self._embedding.table]
        else:
            table = weights.parts([("lm_head.weight", config.vocab_size)], config.hidden_size)
        self._head = LMHead(table, kernels)

    def forward(self, input_ids: Tensor, positions: Tensor, kv_cache: KVCache, metadata: AttentionMetadata) -> Tensor:
        """Hidden states [T, hidden_size], final norm applied, for ids and positions [T]; fills the cache on the way.

        kv_cache: K and V of each layer, of the shapes that `Kernels.kv_cache_shapes` gives.
        """
        plan = self._kernels.plan_attention(metadata)
        step = StepContext(self._rotary(positions), metadata.slot_mapping, plan)
        x, residual = self._embedding(input_ids), None
        for layer, cache in zip(self._layers, kv_cache, strict=True):
            x, residual = layer(x, residual, cache, step)
        return self._norm(x) if residual is None else self._norm.add(x, residual)[0]

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """[rows, hidden_size] to logits [rows, vocab_size], in the model's dtype."""
        return self._head(hidden)
