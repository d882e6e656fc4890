"""Small random models in transformers' format, for tests that need a model directory. Needs transformers."""

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

_SHAPE: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    # Far larger than at the start of a training, so that attention and positions matter and greedy choices are clear.
    "initializer_range": 0.25,
}


def make_llama(path: Path, *, max_shard_size: str = "5GB", seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """Save a random Llama at `path` and return it in float32, in eval mode. Overrides are LlamaConfig's fields."""
    return _make(LlamaForCausalLM, LlamaConfig(**{**_SHAPE, **overrides}), path, max_shard_size, seed)


def make_qwen3(path: Path, *, max_shard_size: str = "5GB", seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """Save a random Qwen3 at `path` and return it in float32, in eval mode. Overrides are Qwen3Config's fields."""
    return _make(Qwen3ForCausalLM, Qwen3Config(**{**_SHAPE, **overrides}), path, max_shard_size, seed)


def _make(kind: type[PreTrainedModel], config: Any, path: Path, max_shard_size: str, seed: int) -> PreTrainedModel:
    torch.manual_seed(seed)
    model = kind(config).to(getattr(config, "dtype", None) or torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # Biases start as zeros and norms as ones: a model that forgot them would pass.
            if name.endswith(".bias") or "norm" in name:
                parameter.add_(torch.randn(parameter.shape).to(parameter.dtype) * 0.2)
    model.save_pretrained(path, max_shard_size=max_shard_size)
    return model
