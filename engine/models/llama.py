"""LlamaForCausalLM: the plain form of the shared decoder.

It differs from it in nothing: grouped-query attention without norms on queries and keys, rotary positions (default or
llama3 scaling), SwiGLU, and biases where config.json asks for them. Llama 2 and 3, and whoever saves in their format.
"""

from engine.layers import CausalLM, ModelConfig, Weights
from kernels import Kernels


def build(config: ModelConfig, weights: Weights, kernels: Kernels) -> CausalLM:
    """The model with its weights packed. Raises ValueError when a weight is missing or has a wrong shape."""
    return CausalLM(config, weights, kernels)
