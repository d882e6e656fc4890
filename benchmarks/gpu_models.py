"""The models that the GPU's benchmarks measure: their published shapes, directories and random checkpoints of them.

Knows what a decode step must read and a prefill must compute, which are the limits that the figures stand beside. Must
not know the engine.
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.random_model import byte_level_tokenizer

# Measured on an H200: bytes/s of a copy, read and written, and bfloat16 flop/s (docs/kernels.md).
COPY_BYTES_S = 4.3e12
MATRIX_FLOPS_S = 790e12
_EOS_ID = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class GpuShape:
    """A dense decoder, in bfloat16. Numbers are those of the config.json that its authors published."""

    name: str
    architecture: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int = 128
    vocab_size: int
    rope_theta: float
    max_len: int
    eps: float
    is_tied: bool = False
    rope_scaling: dict[str, Any] | None = None
    # Most milliseconds of a decode step at context 1024, by batch size.
    bars_ms: tuple[tuple[int, float], ...] = ()

    @property
    def num_layer_weights(self) -> int:
        """Elements of all matrices but the embedding and the head."""
        query, key_value = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        attention = self.hidden_size * (2 * query + 2 * key_value)
        return self.num_layers * (attention + 3 * self.hidden_size * self.intermediate_size)

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values that one token leaves in the cache."""
        return 2 * 2 * self.num_layers * self.num_kv_heads * self.head_dim

    def decode_bytes(self, batch_size: int, context: int) -> int:
        """Bytes that a decode step reads at least: every weight and the head once, and the keys and values."""
        weights = 2 * (self.num_layer_weights + self.vocab_size * self.hidden_size)
        return weights + batch_size * context * self.kv_bytes_per_token

    def decode_limit_ms(self, batch_size: int, context: int) -> float:
        """Those bytes at the speed of an H200's copy."""
        return 1e3 * self.decode_bytes(batch_size, context) / COPY_BYTES_S

    def prefill_flops(self, num_tokens: int) -> int:
        """Operations of one prompt: the layers, attention's causal half, and the head of the last token."""
        per_pair = 4 * self.num_layers * self.num_heads * self.head_dim
        pairs = num_tokens * (num_tokens + 1) // 2
        head = 2 * self.vocab_size * self.hidden_size
        return 2 * num_tokens * self.num_layer_weights + per_pair * pairs + head

    @property
    def checkpoint_bytes(self) -> int:
        """Of the weights in a file, norms left out."""
        num_tables = 1 if self.is_tied else 2
        return 2 * (self.num_layer_weights + num_tables * self.vocab_size * self.hidden_size)


LLAMA_8B = GpuShape(
    name="llama-3.1-8b", architecture="LlamaForCausalLM", hidden_size=4096, intermediate_size=14336, num_layers=32,
    num_heads=32, num_kv_heads=8, vocab_size=128256, rope_theta=500000.0, max_len=131072, eps=1e-5,
    rope_scaling={
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    bars_ms=((1, 4.3), (128, 9.0)),
)  # fmt: skip
QWEN3_14B = GpuShape(
    name="qwen3-14b", architecture="Qwen3ForCausalLM", hidden_size=5120, intermediate_size=17408, num_layers=40,
    num_heads=40, num_kv_heads=8, vocab_size=151936, rope_theta=1e6, max_len=40960, eps=1e-6,
    bars_ms=((1, 7.7), (128, 14.0)),
)  # fmt: skip
QWEN3_06B = GpuShape(
    name="qwen3-0.6b", architecture="Qwen3ForCausalLM", hidden_size=1024, intermediate_size=3072, num_layers=28,
    num_heads=16, num_kv_heads=8, vocab_size=151936, rope_theta=1e6, max_len=40960, eps=1e-6, is_tied=True,
    bars_ms=((1, 0.9), (128, 4.8)),
)  # fmt: skip
SMOKE = GpuShape(
    name="smoke", architecture="LlamaForCausalLM", hidden_size=64, intermediate_size=96, num_layers=2, num_heads=4,
    num_kv_heads=2, head_dim=16, vocab_size=512, rope_theta=1e4, max_len=512, eps=1e-5, bars_ms=((1, 1e9),),
)  # fmt: skip
SHAPES = {shape.name: shape for shape in (LLAMA_8B, QWEN3_14B, QWEN3_06B, SMOKE)}


def config_of(shape: GpuShape) -> dict[str, Any]:
    """config.json."""
    return {
        "architectures": [shape.architecture],
        "model_type": "llama" if shape.architecture.startswith("Llama") else "qwen3",
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "initializer_range": 0.02,
        "max_position_embeddings": shape.max_len,
        "rms_norm_eps": shape.eps,
        "rope_theta": shape.rope_theta,
        "rope_scaling": shape.rope_scaling,
        "tie_word_embeddings": shape.is_tied,
        "use_cache": True,
        "bos_token_id": None,
        "eos_token_id": _EOS_ID,
        "pad_token_id": None,
    }


def make_model_dir(shape: GpuShape, directory: Path) -> Path:
    """Config, generation defaults and a tokenizer of the whole vocabulary; no weights. Returns `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    files = {
        "config.json": config_of(shape),
        "generation_config.json": {"eos_token_id": _EOS_ID, "do_sample": False},
        "tokenizer.json": byte_level_tokenizer(shape.vocab_size),
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>"},
    }
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content))
    return directory


def weight_shapes(shape: GpuShape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of every tensor in a checkpoint."""
    hidden, width = shape.hidden_size, shape.intermediate_size
    query, key_value = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    yield "model.embed_tokens.weight", (shape.vocab_size, hidden)
    for layer in range(shape.num_layers):
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.input_layernorm.weight", (hidden,)
        yield f"{prefix}.self_attn.q_proj.weight", (query, hidden)
        yield f"{prefix}.self_attn.k_proj.weight", (key_value, hidden)
        yield f"{prefix}.self_attn.v_proj.weight", (key_value, hidden)
        yield f"{prefix}.self_attn.o_proj.weight", (hidden, query)
        if shape.architecture.startswith("Qwen3"):
            yield f"{prefix}.self_attn.q_norm.weight", (shape.head_dim,)
            yield f"{prefix}.self_attn.k_norm.weight", (shape.head_dim,)
        yield f"{prefix}.post_attention_layernorm.weight", (hidden,)
        yield f"{prefix}.mlp.gate_proj.weight", (width, hidden)
        yield f"{prefix}.mlp.up_proj.weight", (width, hidden)
        yield f"{prefix}.mlp.down_proj.weight", (hidden, width)
    yield "model.norm.weight", (hidden,)
    if not shape.is_tied:
        yield "lm_head.weight", (shape.vocab_size, hidden)


def write_checkpoint(shape: GpuShape, directory: Path, device: torch.device, num_shards: int) -> list[Path]:
    """Random weights beside the model's config, in `num_shards` safetensors files and their index; the files.

    device: where the numbers are drawn; a GPU draws 15 GB in no time, a CPU in minutes.
    """
    from safetensors.torch import save_file

    def drawn(size: tuple[int, ...]) -> Tensor:
        if len(size) == 1:
            return torch.ones(size, dtype=torch.bfloat16)
        return torch.empty(size, dtype=torch.bfloat16, device=device).normal_(std=0.02).cpu()

    everything = list(weight_shapes(shape))
    num_bytes = {name: 2 * torch.Size(size).numel() for name, size in everything}
    per_shard = -(-sum(num_bytes.values()) // num_shards)
    shards: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    filled = 0
    for name, size in everything:
        if filled >= per_shard and len(shards) < num_shards:
            shards.append([])
            filled = 0
        shards[-1].append((name, size))
        filled += num_bytes[name]
    paths: list[Path] = []
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards):
        path = directory / f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        save_file({name: drawn(size) for name, size in shard}, path, metadata={"format": "pt"})
        weight_map |= {name: path.name for name, _ in shard}
        paths.append(path)
    index = {"metadata": {"total_size": sum(num_bytes.values())}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return paths
