"""Which module builds which architecture. Adding a family is adding its line here. Must not know files."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Protocol

from torch import Tensor

from engine.layers import KVCache, ModelConfig, Weights
from engine.models import llama, qwen3
from kernels import AttentionMetadata, Kernels


class Model(Protocol):
    """What the runner calls."""

    def forward(self, input_ids: Tensor, positions: Tensor, kv_cache: KVCache, metadata: AttentionMetadata) -> Tensor:
        """Hidden states [T, hidden_size] of the step's tokens; fills the cache on the way."""
        ...

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """[rows, hidden_size] to logits [rows, vocab_size]."""
        ...


_BUILDERS: Mapping[str, Callable[[ModelConfig, Weights, Kernels], Model]] = MappingProxyType(
    {
        "LlamaForCausalLM": llama.build,
        "Qwen3ForCausalLM": qwen3.build,
    }
)


def supported_architectures() -> tuple[str, ...]:
    """Names that config.json's `architectures` may have."""
    return tuple(_BUILDERS)


def check_architecture(architecture: str) -> None:
    """Raise ValueError, naming the supported ones, when no family serves `architecture`."""
    if architecture not in _BUILDERS:
        raise ValueError(
            f"the model's architecture {architecture!r} is not supported; supported are {', '.join(_BUILDERS)}"
        )


def build(config: ModelConfig, weights: Weights, kernels: Kernels) -> Model:
    """The model that `config.architecture` names, its weights taken from `weights` and packed.

    Raises ValueError for an architecture without a family, or a weight that is missing or has a wrong shape.
    """
    check_architecture(config.architecture)
    return _BUILDERS[config.architecture](config, weights, kernels)
