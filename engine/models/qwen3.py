"""Qwen3ForCausalLM: the shared decoder with an RMS norm on each query and key head before the rotation.

One learned weight of head_dim for the queries of a layer and one for its keys; head_dim is config.json's own number,
not hidden_size / num_heads.
"""

from engine.layers import CausalLM, ModelConfig, Weights
from kernels import Kernels


def build(config: ModelConfig, weights: Weights, kernels: Kernels) -> CausalLM:
    """The model with its weights packed. Raises ValueError when a weight is missing or has a wrong shape."""
    return CausalLM(config, weights, kernels, qk_norm=True)
