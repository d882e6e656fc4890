"""The engine's settings: one frozen dataclass, whose field comments are the documentation of each.

Knows names, defaults and ranges. Must not read the environment: `container.config` and `LLM` fill it in.
"""

import dataclasses
from types import MappingProxyType
from typing import Any, Literal

_INTEGERS = ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "max_num_waiting", "block_size", "num_threads")
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["none", "int8", "int4"]
Device = Literal["auto", "cpu", "cuda"]
LoadFormat = Literal["auto", "dummy"]
# By device: most sequences in a step, and the step's token budget. A GPU reads its weights once for all of them.
_STEP_SIZES = MappingProxyType({"cpu": (64, 1024), "cuda": (256, 8192)})


def setting(default: Any, help_text: str) -> Any:
    """A dataclass field with its help text; `serve --help` and docs/settings.md print it."""
    return dataclasses.field(default=default, metadata={"help": help_text})


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Settings of one engine. Raises ValueError, naming the setting, when a value is out of range."""

    model: str = setting("", "Model directory: config.json, safetensors weights, tokenizer.json.")
    served_model_name: str | None = setting(
        None, "Name in /v1/models and in responses; the model directory's name if not given."
    )
    dtype: Dtype = setting(
        "auto", "Type of weights and KV cache; auto is the model's own where the machine computes in it, else float32."
    )
    max_model_len: int | None = setting(
        None, "Most tokens of prompt and output together; the model's max_position_embeddings if not given."
    )
    device: Device = setting("auto", "Where the model runs; auto is a CUDA GPU if there is one, else the CPU.")
    load_format: LoadFormat = setting(
        "auto", "Where weights come from: auto reads safetensors; dummy makes up random ones, to measure with."
    )
    max_num_seqs: int | None = setting(None, "Most sequences in one step; if not given, 256 on a GPU and 64 on a CPU.")
    max_num_batched_tokens: int | None = setting(
        None,
        "Token budget of one step: long prompts are computed in chunks of at most this many tokens; if not given, 8192 "
        "on a GPU and 1024 on a CPU.",
    )
    max_num_waiting: int = setting(256, "Most sequences that wait to be admitted; beyond it a request gets 429.")
    block_size: int = setting(32, "Tokens per KV-cache block; a multiple of 16, at most 128.")
    kv_cache_memory_gib: float | None = setting(
        None,
        "GiB for the KV cache; if not given, enough for max_num_seqs full sequences, but at most 4 GiB on a CPU, and "
        "on a GPU what gpu_memory_utilization leaves.",
    )
    gpu_memory_utilization: float = setting(
        0.9, "Part of the GPU's memory that weights, activations, CUDA graphs and KV cache may take together."
    )
    enforce_eager: bool = setting(False, "Launch every kernel one by one: no CUDA graphs of the decode step.")
    async_scheduling: bool | None = setting(
        None,
        "Schedule and launch a step while the device computes the one before it; if not given, on a GPU. On a CPU "
        "there is nothing to gain.",
    )
    enable_prefix_caching: bool = setting(
        True, "Keep the K/V of finished requests while there is room, for prompts that begin alike."
    )
    quantization: Quantization = setting(
        "none", "Linear layers on a CPU in int8 or int4: faster and less exact (docs/quantization.md)."
    )
    deterministic: bool | None = setting(
        None,
        "On a CPU, bitwise the same logits for a sequence whatever it is computed beside; if not given, wherever that "
        "costs nothing: on every CPU without AMX.",
    )
    num_threads: int | None = setting(None, "CPU threads of the engine's kernels; all cores if not given.")

    def __post_init__(self) -> None:
        for name in _INTEGERS:
            value = getattr(self, name)
            is_absent = value is None and name not in ("block_size", "max_num_waiting")
            _check(is_absent or (isinstance(value, int) and not isinstance(value, bool)), name, "an integer")
        for name in ("kv_cache_memory_gib", "gpu_memory_utilization"):
            value = getattr(self, name)
            is_absent = value is None and name == "kv_cache_memory_gib"
            _check(is_absent or (isinstance(value, int | float) and not isinstance(value, bool)), name, "a number")
        for name, most in (("max_num_seqs", 2**16 - 1), ("max_num_batched_tokens", 2**24), ("max_num_waiting", 2**31)):
            value = getattr(self, name)
            _check(value is None or 1 <= value <= most, name, f"between 1 and {most}")
        _check(
            self.block_size % 16 == 0 and 16 <= self.block_size <= 128, "block_size", "a multiple of 16 from 16 to 128"
        )
        _check(self.max_model_len is None or self.max_model_len >= 2, "max_model_len", "at least 2")
        memory_gib = self.kv_cache_memory_gib
        _check(memory_gib is None or 0 < memory_gib <= 2**20, "kv_cache_memory_gib", f"more than 0 and at most {2**20}")
        _check(self.num_threads is None or 1 <= self.num_threads <= 1024, "num_threads", "between 1 and 1024")
        _check(0 < self.gpu_memory_utilization <= 1, "gpu_memory_utilization", "more than 0 and at most 1")
        for name in ("enable_prefix_caching", "enforce_eager"):
            _check(isinstance(getattr(self, name), bool), name, "true or false")
        for name in ("deterministic", "async_scheduling"):
            value = getattr(self, name)
            _check(value is None or isinstance(value, bool), name, "true or false")
        _check(self.device in ("auto", "cpu", "cuda"), "device", "auto, cpu or cuda")
        _check(self.load_format in ("auto", "dummy"), "load_format", "auto or dummy")
        _check(self.quantization in ("none", "int8", "int4"), "quantization", "none, int8 or int4")
        _check(self.dtype in ("auto", "float32", "bfloat16", "float16"), "dtype", "auto, float32, bfloat16 or float16")

    def for_device(self, device_type: str) -> "EngineConfig":
        """The same with what was left to the device filled in. device_type: torch's name of it."""
        device: Device = "cuda" if device_type == "cuda" else "cpu"
        max_num_seqs, max_num_batched_tokens = _STEP_SIZES[device]
        is_async = device == "cuda" if self.async_scheduling is None else self.async_scheduling
        return dataclasses.replace(
            self,
            device=device,
            max_num_seqs=self.max_num_seqs or max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens or max_num_batched_tokens,
            async_scheduling=is_async,
        )


def _check(holds: bool, name: str, expected: str) -> None:
    if not holds:
        raise ValueError(f"{name} must be {expected}")
