"""A model's numbers, as its layers need them. Must not know files: `engine.loading` reads them from config.json."""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Llama3Scaling:
    """Llama 3.1's stretching of the low rotary frequencies; names and meaning as in its config.json."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Base of the rotary frequencies, and how they are scaled (None: not at all)."""

    theta: float
    llama3: Llama3Scaling | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """What a decoder is made of.

    architecture: the class that config.json names. dtype: the checkpoint's type, by torch's name.
    attention_bias: bias in the q, k, v and output projections. mlp_bias: bias in the MLP's projections.
    """

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int
    rope: RopeConfig
    attention_bias: bool
    mlp_bias: bool
    tie_word_embeddings: bool
    dtype: str
