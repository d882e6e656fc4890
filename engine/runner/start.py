"""`load_runner`: from settings to a runner that is warm. Sizes the cache; every refusal is one line of ValueError.

Must not know the scheduler or the sockets.
"""

import dataclasses
import logging
import time
from collections.abc import Callable
from pathlib import Path

import torch

from engine import models
from engine.api import EngineConfig, InvalidRequest, ModelInfo, SamplingParams
from engine.layers import ModelConfig
from engine.loading import GenerationDefaults, open_weights, read_generation_defaults, read_model_config
from engine.runner.model_runner import ModelRunner, RunnerLimits, bytes_per_block
from kernels import KernelOptions, Kernels, for_device, preferred_dtype

_DEFAULT_CPU_CACHE_GIB = 4.0
_log = logging.getLogger(__name__)


def load_runner(config: EngineConfig, on_stage: Callable[[str], None]) -> tuple[ModelRunner, ModelInfo]:
    """Read the model in `config.model`, pack its weights, allocate the cache and warm up.

    on_stage: told what is going on, for people. Raises ValueError, of one line, where the model or a setting cannot be
    served.
    """
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    directory = Path(config.model)
    on_stage("reading the model's configuration")
    if not config.model or not directory.is_dir():
        raise ValueError(f"the model directory {config.model!r} does not exist")
    model_config = read_model_config(directory)
    models.check_architecture(model_config.architecture)
    generation = read_generation_defaults(directory)
    _check_defaults(generation, model_config)
    device = torch.device("cpu")
    dtype = choose_dtype(config, model_config, device)
    kernels = for_device(device, dtype, KernelOptions(config.quantization, config.deterministic))
    limits = choose_limits(config, model_config, bytes_per_block(kernels, model_config, config.block_size, dtype))
    limits = dataclasses.replace(limits, eos_token_ids=generation.eos_token_ids)
    on_stage("loading weights")
    model = load_model(directory, model_config, dtype, kernels)
    on_stage("allocating the KV cache")
    runner = ModelRunner(model, kernels, model_config, dtype, limits)
    on_stage("warming up")
    runner.warm_up()
    info = ModelInfo(
        served_name=config.served_model_name or directory.resolve().name,
        model_dir=str(directory.absolute()),
        created_s=int(time.time()),
        vocab_size=model_config.vocab_size,
        max_model_len=limits.max_model_len,
        eos_token_ids=generation.eos_token_ids,
        default_temperature=generation.temperature,
        default_top_k=generation.top_k,
        default_top_p=generation.top_p,
    )
    return runner, info


def _check_defaults(defaults: GenerationDefaults, config: ModelConfig) -> None:
    """A default that no request may have would fail every request that names none."""
    try:
        SamplingParams(temperature=defaults.temperature, top_k=defaults.top_k, top_p=defaults.top_p)
    except InvalidRequest as error:
        raise ValueError(f"generation_config.json: {error.message}") from error
    strange = [token_id for token_id in defaults.eos_token_ids if token_id >= config.vocab_size]
    if strange:
        raise ValueError(f"'eos_token_id' {strange[0]} is not in the vocabulary of {config.vocab_size} tokens")


def load_model(directory: Path, config: ModelConfig, dtype: torch.dtype, kernels: Kernels) -> models.Model:
    """The model with its weights in `dtype`. Raises ValueError for a weight too few, too many or of another shape."""
    # Old checkpoints carry the rotary frequencies, and tied ones may repeat the table as the head.
    harmless = ("rotary_emb.inv_freq", *(("lm_head.weight",) if config.tie_word_embeddings else ()))
    with open_weights("auto", directory, dtype, torch.device("cpu")) as weights:
        model = models.build(config, weights, kernels)
        _log.info("%s", weights.finish(harmless))
    return model


def choose_dtype(config: EngineConfig, model: ModelConfig, device: torch.device) -> torch.dtype:
    """The setting's dtype; for "auto" the model's own where the device computes in it well."""
    if config.dtype != "auto":
        return _torch_dtype(config.dtype)
    return preferred_dtype(device, _torch_dtype(model.dtype))


def _torch_dtype(name: str) -> torch.dtype:
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def choose_limits(config: EngineConfig, model: ModelConfig, block_bytes: int) -> RunnerLimits:
    """How long sequences may be, and how many blocks of `block_bytes`; at least one sequence of max_model_len fits.

    Raises ValueError when the settings ask for more than the model or the memory has. Without a max_model_len of its
    own, the length is reduced to what the cache holds.
    """
    if config.max_model_len is not None and config.max_model_len > model.max_position_embeddings:
        raise ValueError(
            f"max_model_len {config.max_model_len} is more than the model's max_position_embeddings "
            f"{model.max_position_embeddings}"
        )
    if model.max_position_embeddings < 2:
        raise ValueError(
            f"config.json: 'max_position_embeddings' must be at least 2, not {model.max_position_embeddings}"
        )
    max_model_len = config.max_model_len or model.max_position_embeddings
    blocks_per_seq = -(-max_model_len // config.block_size)
    memory_gib = config.kv_cache_memory_gib or _DEFAULT_CPU_CACHE_GIB
    num_blocks = int(memory_gib * 2**30) // block_bytes
    if config.kv_cache_memory_gib is None:
        num_blocks = min(num_blocks, config.max_num_seqs * blocks_per_seq + 1)
    limits = RunnerLimits(
        num_blocks=num_blocks,
        block_size=config.block_size,
        max_num_seqs=config.max_num_seqs,
        max_model_len=max_model_len,
    )
    # One block is the null block.
    fitting_len = (num_blocks - 1) * config.block_size
    if fitting_len >= max_model_len:
        return limits
    if fitting_len < config.block_size:
        raise ValueError(
            f"kv_cache_memory_gib {memory_gib:g} does not hold a single block of {config.block_size} tokens"
        )
    if config.max_model_len is not None:
        raise ValueError(
            f"a KV cache of {memory_gib:g} GiB holds {fitting_len} tokens, but max_model_len is {max_model_len}: "
            "raise kv_cache_memory_gib or lower max_model_len"
        )
    _log.warning("max_model_len is %d, not the model's %d: that is what the KV cache holds", fitting_len, max_model_len)
    return dataclasses.replace(limits, max_model_len=fitting_len)
