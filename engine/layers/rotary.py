"""Rotary position embedding: the frequencies, plain or scaled as Llama 3.1 does. Must not know the attention."""

import math

import torch
from torch import Tensor

from engine.layers.config import Llama3Scaling, RopeConfig
from kernels import Kernels


class RotaryEmbedding:
    """The cosines and sines of a step, from the positions of its tokens; one for all layers."""

    def __init__(self, config: RopeConfig, head_dim: int, kernels: Kernels, device: torch.device) -> None:
        inv_freq = config.theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
        # Computed on the CPU everywhere: the same bits on every device.
        self._inv_freq = (inv_freq if config.llama3 is None else _stretch(inv_freq, config.llama3)).to(device)
        self._kernels = kernels

    def __call__(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """(cos, sin) for positions [T], [T, head_dim / 2] each."""
        return self._kernels.rope_tables(positions, self._inv_freq, 1.0)


def _stretch(inv_freq: Tensor, scaling: Llama3Scaling) -> Tensor:
    """Divide low frequencies by `factor`, keep high ones, blend in between.

    Source: Meta's llama-models, models/llama3/model.py, apply_scaling.
    """
    turns = scaling.original_max_position_embeddings * inv_freq / (2 * math.pi)
    blend = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    blend = blend.clamp(0.0, 1.0)
    return inv_freq * (blend + (1.0 - blend) / scaling.factor)
