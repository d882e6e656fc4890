"""How many blocks the KV cache gets, and how long sequences may be. Every refusal is one line of ValueError.

On a CPU a setting says it, or a default; on a GPU what is left of `gpu_memory_utilization` when the weights, one step
of the largest kind and the recorded decode steps have taken theirs, each measured. Arithmetic only: who measures is
`engine.runner.start`.
"""

import dataclasses
import logging

from engine.api import EngineConfig
from engine.layers import ModelConfig

_DEFAULT_CPU_CACHE_GIB = 4.0
_GIB = 2**30
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class GpuUse:
    """Bytes of a GPU's memory, measured.

    total: of the device. used: by everything on it, once the weights are there. step: what the largest step takes on
    top of that. graphs: what the recorded decode steps will take.
    """

    total: int
    used: int
    step: int
    graphs: int


@dataclasses.dataclass(frozen=True, slots=True)
class CacheSize:
    """num_blocks counts the null block; max_model_len: the most tokens of a sequence."""

    num_blocks: int
    max_model_len: int


def check_max_model_len(config: EngineConfig, model: ModelConfig) -> int:
    """The most tokens that a sequence may have, memory aside. Raises ValueError for more than the model knows."""
    if config.max_model_len is not None and config.max_model_len > model.max_position_embeddings:
        raise ValueError(
            f"max_model_len {config.max_model_len} is more than the model's max_position_embeddings "
            f"{model.max_position_embeddings}"
        )
    if model.max_position_embeddings < 2:
        raise ValueError(
            f"config.json: 'max_position_embeddings' must be at least 2, not {model.max_position_embeddings}"
        )
    return config.max_model_len or model.max_position_embeddings


def cache_bytes_on_gpu(config: EngineConfig, use: GpuUse) -> int:
    """What the KV cache may take. Raises ValueError, naming what to change, where that is nothing."""
    allowed = int(use.total * config.gpu_memory_utilization)
    left = allowed - use.used - use.step - use.graphs
    wanted = None if config.kv_cache_memory_gib is None else int(config.kv_cache_memory_gib * _GIB)
    if left > 0 and (wanted is None or wanted <= left):
        return left if wanted is None else wanted
    parts = (
        f"of {allowed / _GIB:.1f} GiB (gpu_memory_utilization {config.gpu_memory_utilization:g} of "
        f"{use.total / _GIB:.1f}) weights and other users of the GPU take {use.used / _GIB:.1f}, a step of "
        f"{config.max_num_batched_tokens} tokens {use.step / _GIB:.1f} and CUDA graphs {use.graphs / _GIB:.1f}"
    )
    if left <= 0:
        raise ValueError(
            f"the model leaves no memory for the KV cache: {parts}; lower max_num_batched_tokens or max_num_seqs, "
            "raise gpu_memory_utilization, or take a larger GPU"
        )
    raise ValueError(
        f"kv_cache_memory_gib {config.kv_cache_memory_gib:g} is more than the {left / _GIB:.1f} GiB that are left: "
        f"{parts}"
    )


def cache_bytes_on_cpu(config: EngineConfig) -> int:
    """What the KV cache may take."""
    return int((config.kv_cache_memory_gib or _DEFAULT_CPU_CACHE_GIB) * _GIB)


def size_cache(config: EngineConfig, max_model_len: int, block_bytes: int, cache_bytes: int) -> CacheSize:
    """How many blocks of `block_bytes` to take; at least one sequence of max_model_len fits.

    No more than `max_num_seqs` sequences can fill, unless a size was asked for: what is over serves the prefix cache
    alone, and on a GPU nobody else wants it. Without a max_model_len of its own, the length is reduced to what the
    cache holds. Raises ValueError where the settings ask for more.
    """
    assert config.max_num_seqs is not None
    num_blocks = cache_bytes // block_bytes
    if config.kv_cache_memory_gib is None and config.device != "cuda":
        num_blocks = min(num_blocks, config.max_num_seqs * -(-max_model_len // config.block_size) + 1)
    # One block is the null block.
    fitting_len = (num_blocks - 1) * config.block_size
    if fitting_len >= max_model_len:
        return CacheSize(num_blocks, max_model_len)
    memory_gib = cache_bytes / _GIB
    name = "gpu_memory_utilization" if config.device == "cuda" else "kv_cache_memory_gib"
    if config.kv_cache_memory_gib is not None:
        memory_gib, name = config.kv_cache_memory_gib, "kv_cache_memory_gib"
    if fitting_len < config.block_size:
        raise ValueError(
            f"a KV cache of {memory_gib:.2g} GiB does not hold a single block of {config.block_size} tokens: "
            f"raise {name}"
        )
    if config.max_model_len is not None:
        raise ValueError(
            f"a KV cache of {memory_gib:.3g} GiB holds {fitting_len} tokens, but max_model_len is {max_model_len}: "
            f"raise {name} or lower max_model_len"
        )
    _log.warning("max_model_len is %d, not the model's %d: that is what the KV cache holds", fitting_len, max_model_len)
    return CacheSize(num_blocks, fitting_len)
