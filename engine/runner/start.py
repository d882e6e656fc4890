"""`load_runner`: from settings to a runner that is warm. Every refusal is one line of ValueError.

Each stage is told to whoever watches, and its seconds to the log. Must not know the scheduler or the sockets.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from engine import models
from engine.api import EngineConfig, InvalidRequest, ModelInfo, SamplingParams
from engine.layers import ModelConfig
from engine.loading import GenerationDefaults, open_weights, read_generation_defaults, read_model_config
from engine.runner.cuda import CudaDevice, is_out_of_memory, missing_gpu
from engine.runner.device import Device, HostDevice
from engine.runner.memory import (
    CacheSize,
    GpuUse,
    cache_bytes_on_cpu,
    cache_bytes_on_gpu,
    check_max_model_len,
    size_cache,
)
from engine.runner.model_runner import LoadedModel, ModelRunner, RunnerLimits, bytes_per_block
from kernels import KernelOptions, Kernels, for_device, preferred_dtype

_GIB = 2**30
# With this many blocks a runner can compute steps of the null block, which is all that measuring needs.
_FEWEST_BLOCKS = 2
_log = logging.getLogger(__name__)


class Stages:
    """Tells what is going on, and logs how long each stage took."""

    def __init__(self, on_stage: Callable[[str], None]) -> None:
        self.tell = on_stage

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """`name` is going on inside."""
        self.tell(name)
        started = time.monotonic()
        yield
        _log.info("%s took %.2f s", name, time.monotonic() - started)

    def progress(self, done_bytes: int, total_bytes: int) -> None:
        """How much of the weights has been read."""
        self.tell(f"loading weights: {done_bytes / 1e9:.1f} of {total_bytes / 1e9:.1f} GB")


def load_runner(
    config: EngineConfig, on_stage: Callable[[str], None], device: Device | None = None
) -> tuple[ModelRunner, ModelInfo]:
    """Read the model in `config.model`, load its weights, size and allocate the cache, record graphs and warm up.

    on_stage: told what is going on, for people. device: None is the one that the settings name. Raises ValueError, of
    one line, where the model or a setting cannot be served.
    """
    stages = Stages(on_stage)
    if config.num_threads is not None:
        torch.set_num_threads(config.num_threads)
    directory = Path(config.model)
    with stages.stage("reading the model's configuration"):
        if not config.model or not directory.is_dir():
            raise ValueError(f"the model directory {config.model!r} does not exist")
        model_config = read_model_config(directory)
        models.check_architecture(model_config.architecture)
        generation = read_generation_defaults(directory)
        _check_defaults(generation, model_config)
    with stages.stage("preparing the device and its kernels"):
        device = device or open_device(config)
        config = config.for_device(device.torch_device.type)
        dtype = choose_dtype(config, model_config, device.torch_device)
        options = KernelOptions(config.quantization, config.deterministic)
        kernels = for_device(device.torch_device, dtype, options)
        max_model_len = check_max_model_len(config, model_config)
        if isinstance(device, HostDevice):
            # On a CPU the sizes follow from settings alone: what cannot be is refused before the weights are read.
            size = _size_on_cpu(config, max_model_len, model_config, kernels, dtype)
    with stages.stage("loading weights"), _one_line_if_full(config):
        loaded = load_model(config, model_config, kernels, dtype, device.torch_device, stages.progress)
    if isinstance(device, CudaDevice):
        with stages.stage("measuring a step"), _one_line_if_full(config):
            size = _size_on_gpu(config, max_model_len, loaded, device, generation)
    with stages.stage("allocating the KV cache"), _one_line_if_full(config):
        runner = ModelRunner(loaded, device, _limits(config, size, generation))
    _log.info(
        "the KV cache holds %d tokens in %.2f GiB",
        (size.num_blocks - 1) * config.block_size,
        size.num_blocks * bytes_per_block(kernels, model_config, config.block_size, dtype) / _GIB,
    )
    with stages.stage("warming up"):
        runner.warm_up()
    if device.has_graphs and not config.enforce_eager:
        with stages.stage("recording CUDA graphs"), _one_line_if_full(config):
            runner.capture()
    info = ModelInfo(
        served_name=config.served_model_name or directory.resolve().name,
        model_dir=str(directory.absolute()),
        created_s=int(time.time()),
        vocab_size=model_config.vocab_size,
        max_model_len=size.max_model_len,
        eos_token_ids=generation.eos_token_ids,
        default_temperature=generation.temperature,
        default_top_k=generation.top_k,
        default_top_p=generation.top_p,
    )
    return runner, info


def open_device(config: EngineConfig) -> Device:
    """The device that the settings name. Raises ValueError where it is not there."""
    if config.device == "cpu":
        return HostDevice()
    if torch.cuda.is_available():
        return CudaDevice()
    missing = missing_gpu()
    if config.device == "cuda":
        reason = missing.reason if missing else "check the driver and `--gpus all`"
        raise ValueError(f"device is cuda, but no CUDA GPU is there: {reason}; or use device cpu")
    if missing and missing.is_driver_old:
        # Not in silence on the CPU of a GPU machine: that would be healthy, and a hundred times slower.
        raise ValueError(f"{missing.reason}; `--device cpu` serves without a GPU")
    if missing:
        _log.warning("serving on the CPU: %s", missing.reason)
    return HostDevice()


def _check_defaults(defaults: GenerationDefaults, config: ModelConfig) -> None:
    """A default that no request may have would fail every request that names none."""
    try:
        SamplingParams(temperature=defaults.temperature, top_k=defaults.top_k, top_p=defaults.top_p)
    except InvalidRequest as error:
        raise ValueError(f"generation_config.json: {error.message}") from error
    strange = [token_id for token_id in defaults.eos_token_ids if token_id >= config.vocab_size]
    if strange:
        raise ValueError(f"'eos_token_id' {strange[0]} is not in the vocabulary of {config.vocab_size} tokens")


def load_model(
    config: EngineConfig,
    model_config: ModelConfig,
    kernels: Kernels,
    dtype: torch.dtype,
    device: torch.device,
    on_progress: Callable[[int, int], None] | None = None,
) -> LoadedModel:
    """The model in `config.model` with its weights in `dtype`; on_progress: bytes read so far, and of all.

    Raises ValueError for a weight too few, too many or of another shape.
    """
    # Old checkpoints carry the rotary frequencies, and tied ones may repeat the table as the head.
    harmless = ("rotary_emb.inv_freq", *(("lm_head.weight",) if model_config.tie_word_embeddings else ()))
    with open_weights(config.load_format, Path(config.model), dtype, device, on_progress) as weights:
        model = models.build(model_config, weights, kernels)
        _log.info("%s", weights.finish(harmless))
    return LoadedModel(model, kernels, model_config, dtype)


def choose_dtype(config: EngineConfig, model: ModelConfig, device: torch.device) -> torch.dtype:
    """The setting's dtype; for "auto" the model's own where the device computes in it well."""
    if config.dtype != "auto":
        return _torch_dtype(config.dtype)
    return preferred_dtype(device, _torch_dtype(model.dtype))


def _torch_dtype(name: str) -> torch.dtype:
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def _limits(config: EngineConfig, size: CacheSize, generation: GenerationDefaults) -> RunnerLimits:
    assert config.max_num_seqs is not None and config.max_num_batched_tokens is not None
    return RunnerLimits(
        num_blocks=size.num_blocks,
        block_size=config.block_size,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_model_len=size.max_model_len,
        eos_token_ids=generation.eos_token_ids,
    )


def _size_on_cpu(
    config: EngineConfig, max_model_len: int, model_config: ModelConfig, kernels: Kernels, dtype: torch.dtype
) -> CacheSize:
    block_bytes = bytes_per_block(kernels, model_config, config.block_size, dtype)
    return size_cache(config, max_model_len, block_bytes, cache_bytes_on_cpu(config))


def _size_on_gpu(
    config: EngineConfig,
    max_model_len: int,
    loaded: LoadedModel,
    device: CudaDevice,
    generation: GenerationDefaults,
) -> CacheSize:
    """Measure a runner with next to no cache: its largest step, and two of its recorded decode steps."""
    runner = ModelRunner(loaded, device, _limits(config, CacheSize(_FEWEST_BLOCKS, max_model_len), generation))
    runner.warm_up()
    with device.peak() as step_bytes:
        runner.profile()
    step = step_bytes()
    graphs = 0
    before = device.memory()
    sizes = runner.graph_sizes
    if not config.enforce_eager:
        # The largest takes the memory that all share; each further one, what its own launches take.
        runner.capture(sizes[-1:])
        first = device.memory()
        graphs = before.free - first.free
        if len(sizes) > 1:
            runner.capture(sizes[-2:-1])
            graphs += max(0, first.free - device.memory().free) * (len(sizes) - 1)
    del runner
    device.drop_graphs()
    use = GpuUse(total=before.total, used=before.total - before.free, step=step, graphs=max(0, graphs))
    block_bytes = bytes_per_block(loaded.kernels, loaded.config, config.block_size, loaded.dtype)
    return size_cache(config, max_model_len, block_bytes, cache_bytes_on_gpu(config, use))


@contextlib.contextmanager
def _one_line_if_full(config: EngineConfig) -> Iterator[None]:
    """A device that is full while the engine starts is a setting that is wrong, and not an engine that has failed."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ValueError(
            f"the memory of the {'GPU' if config.device == 'cuda' else 'machine'} is full: the model in {config.dtype} "
            f"with max_num_batched_tokens {config.max_num_batched_tokens}, max_num_seqs {config.max_num_seqs} and "
            f"kv_cache_memory_gib {config.kv_cache_memory_gib} does not fit; lower these, end other processes on it, "
            "or take a larger one"
        ) from None
