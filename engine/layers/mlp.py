"""The gated feed-forward layer of Llama and its relatives. Must not know the layers around it."""

from torch import Tensor

from engine.layers.config import ModelConfig
from engine.layers.linear import Linear
from engine.layers.weights import Weights
from kernels import Kernels


class GatedMLP:
    """down(silu(gate(x)) * up(x)), gate and up as one product."""

    def __init__(self, config: ModelConfig, weights: Weights, prefix: str, kernels: Kernels) -> None:
        hidden, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        parts = ((prefix + "gate_proj", inner), (prefix + "up_proj", inner))
        self._gate_up = Linear(weights, parts, hidden, bias, kernels)
        self._down = Linear(weights, ((prefix + "down_proj", hidden),), inner, bias, kernels)
        self._kernels = kernels

    def __call__(self, x: Tensor) -> Tensor:
        """X [T, hidden_size] to the same shape."""
        return self._down(self._kernels.silu_and_mul(self._gate_up(x)))
