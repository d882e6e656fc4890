"""The network that is trained: Qwen3 (RMS norm, QK norm, rotary positions, grouped queries, SwiGLU, tied embeddings).

Written for two CPU cores: weights are fp32 and computed with in bf16, the parts between the attentions run over a
constant `[num_tokens, hidden]` shape so that they are compiled once, and attention is two batched matmuls
and a softmax, because the backward of the fused CPU kernel is slow on short rows. export.py gives the weights to
transformers' Qwen3ForCausalLM, which is the judge.
"""

import math
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RMS_EPS = 1e-6
ROPE_THETA = 10_000.0


@dataclass(frozen=True)
class Shape:
    """Sizes of the network; the defaults are Galley Tiny's."""

    vocab_size: int
    hidden_size: int = 256
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 2
    intermediate_size: int = 704

    @property
    def head_dim(self) -> int:
        """Size of one head."""
        return self.hidden_size // self.num_heads

    def as_dict(self) -> dict[str, int]:
        """The fields, for a checkpoint."""
        return asdict(self)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """Normalises the last dimension in fp32; returns bf16."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + RMS_EPS) * weight).to(torch.bfloat16)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on `[num_tokens, num_heads, head_dim]` in the half-split layout of Qwen3."""
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


class Layer(nn.Module):
    """The weights of one layer. before_attention and after_attention use them; attention itself has none."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        hidden, kv, wide = shape.hidden_size, shape.num_kv_heads * shape.head_dim, shape.intermediate_size
        self.q, self.k, self.v = _matrix(hidden, hidden), _matrix(kv, hidden), _matrix(kv, hidden)
        self.o = _matrix(hidden, hidden, 0.3)
        self.gate, self.up, self.down = _matrix(wide, hidden), _matrix(wide, hidden), _matrix(hidden, wide, 0.3)
        self.input_norm, self.mlp_norm = nn.Parameter(torch.ones(hidden)), nn.Parameter(torch.ones(hidden))
        self.q_norm, self.k_norm = nn.Parameter(torch.ones(shape.head_dim)), nn.Parameter(torch.ones(shape.head_dim))

    def before_attention(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`[num_tokens, hidden]` to rotated queries, rotated keys and values, each `[num_tokens, heads, head_dim]`."""
        shape = self.shape
        kv = shape.num_kv_heads * shape.head_dim
        projected = F.linear(rms_norm(x, self.input_norm), torch.cat([self.q, self.k, self.v]).to(torch.bfloat16))
        q, k, v = torch.split(projected, [shape.hidden_size, kv, kv], -1)
        q = rotate(rms_norm(q.view(-1, shape.num_heads, shape.head_dim), self.q_norm), cos, sin)
        k = rotate(rms_norm(k.view(-1, shape.num_kv_heads, shape.head_dim), self.k_norm), cos, sin)
        return q, k, v.reshape(-1, shape.num_kv_heads, shape.head_dim)

    def after_attention(self, x: Tensor, attended: Tensor) -> Tensor:
        """Output projection and SwiGLU, each added to `x` `[num_tokens, hidden]`."""
        x = x + F.linear(attended, self.o.to(torch.bfloat16))
        both = F.linear(rms_norm(x, self.mlp_norm), torch.cat([self.gate, self.up]).to(torch.bfloat16))
        gate, up = both.chunk(2, -1)
        return x + F.linear(F.silu(gate) * up, self.down.to(torch.bfloat16))


def _matrix(rows: int, columns: int, scale: float = 1.0) -> nn.Parameter:
    return nn.Parameter(torch.randn(rows, columns) * scale / math.sqrt(columns))


class Network(nn.Module):
    """The whole model: forward() on rows of equal length, logits() of the hidden states that matter."""

    def __init__(self, shape: Shape, max_length: int = 1024) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Parameter(torch.randn(shape.vocab_size, shape.hidden_size) * 0.05)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.num_layers))
        self.final_norm = nn.Parameter(torch.ones(shape.hidden_size))
        angles = torch.arange(max_length).float()[:, None] * _frequencies(shape)[None]
        self.cos, self.sin = angles.cos().to(torch.bfloat16), angles.sin().to(torch.bfloat16)
        self._masks: dict[int, Tensor] = {}
        self._look_back()
        # Functions of their inputs and weights only, so that all layers share one compiled graph.
        self._before = torch.compile(Layer.before_attention)
        self._after = torch.compile(Layer.after_attention)

    @torch.no_grad()
    def _look_back(self) -> None:
        """Makes two heads of the first layer look one token back (loss 0.63 instead of 1.21 at step 275 of a trial).

        Embedding dimension 0 is a constant; the fastest rotary frequencies turn it into "the key one position earlier".
        """
        shape, num_frequencies = self.shape, 8
        frequencies, half = _frequencies(shape), shape.head_dim // 2
        self.embedding[:, 0] = 0.3
        layer = self.layers[0]
        assert isinstance(layer, Layer)
        for weight, start, shift in ((layer.q, 0, 0.0), (layer.q, shape.head_dim, -1.0), (layer.k, 0, 1.0)):
            weight[start : start + shape.head_dim] *= 0.3
            pattern = torch.zeros(shape.head_dim)
            pattern[:num_frequencies] = torch.cos(shift * frequencies[:num_frequencies])
            pattern[half : half + num_frequencies] = torch.sin(shift * frequencies[:num_frequencies])
            weight[start : start + shape.head_dim, 0] = pattern
        for norm in (layer.q_norm, layer.k_norm):
            norm[:num_frequencies] = 2.0
            norm[half : half + num_frequencies] = 2.0

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Causal attention on `[num_rows, heads, length, head_dim]`."""
        num_rows, num_heads, length, head_dim = q.shape
        if length not in self._masks:
            self._masks[length] = torch.full((1, length, length), float("-inf")).triu(1).to(torch.bfloat16)
        flat = (num_rows * num_heads, length, head_dim)
        scores = torch.baddbmm(
            self._masks[length], q.reshape(flat), k.reshape(flat).transpose(1, 2), alpha=head_dim**-0.5
        )
        return torch.bmm(scores.softmax(-1), v.reshape(flat)).view(q.shape)

    def forward(self, tokens: Tensor, length: int) -> Tensor:
        """Hidden states `[num_tokens, hidden]` of `tokens` `[num_tokens]`: rows of `length`, then padding."""
        shape, num_rows = self.shape, tokens.numel() // length
        num_used, repeats = num_rows * length, shape.num_heads // shape.num_kv_heads
        positions = torch.arange(tokens.numel()) % length
        cos, sin = self.cos[positions][:, None], self.sin[positions][:, None]
        x = F.embedding(tokens, self.embedding).to(torch.bfloat16)
        for layer in self.layers:
            assert isinstance(layer, Layer)
            q, k, v = self._before(layer, x, cos, sin)
            k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
            rows = [t[:num_used].view(num_rows, length, -1, shape.head_dim).transpose(1, 2) for t in (q, k, v)]
            attended = self._attend(*rows).transpose(1, 2).reshape(num_used, shape.hidden_size)
            if num_used < tokens.numel():
                attended = F.pad(attended, (0, 0, 0, tokens.numel() - num_used))
            x = self._after(layer, x, attended)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """`[n, hidden]` to fp32 logits `[n, vocab_size]`."""
        return F.linear(rms_norm(hidden, self.final_norm), self.embedding.to(torch.bfloat16)).float()


def _frequencies(shape: Shape) -> Tensor:
    return ROPE_THETA ** (-torch.arange(0, shape.head_dim, 2).float() / shape.head_dim)
