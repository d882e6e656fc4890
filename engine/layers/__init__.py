"""The parts that model families are made of, for inference only.

Each takes its weights by name when it is built and asks the kernels to pack them. Knows tensors and a model's numbers;
must not know sequences, requests or files.
"""

from engine.layers.attention import Attention, StepContext
from engine.layers.config import ModelConfig, RopeConfig
from engine.layers.decoder import CausalLM, KVCache
from engine.layers.linear import Embedding, Linear, LMHead
from engine.layers.mlp import GatedMLP
from engine.layers.norm import RMSNorm
from engine.layers.rotary import RotaryEmbedding
from engine.layers.weights import Weights

__all__ = [
    "Attention",
    "CausalLM",
    "Embedding",
    "GatedMLP",
    "KVCache",
    "LMHead",
    "Linear",
    "ModelConfig",
    "RMSNorm",
    "RopeConfig",
    "RotaryEmbedding",
    "StepContext",
    "Weights",
]
