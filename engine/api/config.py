"""The engine's settings: one frozen dataclass, whose field comments are the documentation of each.

Knows names, defaults and ranges. Must not read the environment: `container.config` and `LLM` fill it in.
"""

import dataclasses
from typing import Any, Literal

_INTEGERS = ("max_model_len", "max_num_seqs", "max_num_batched_tokens", "max_num_waiting", "block_size", "num_threads")
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Quantization = Literal["none", "int8", "int4"]


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
    max_num_seqs: int = setting(64, "Most sequences in one step.")
    max_num_batched_tokens: int = setting(
        1024, "Token budget of one step: long prompts are computed in chunks of at most this many tokens."
    )
    max_num_waiting: int = setting(256, "Most sequences that wait to be admitted; beyond it a request gets 429.")
    block_size: int = setting(32, "Tokens per KV-cache block; a multiple of 16, at most 128.")
    kv_cache_memory_gib: float | None = setting(
        None, "GiB for the KV cache; if not given, enough for max_num_seqs full sequences, but at most 4 GiB on a CPU."
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
            _check(value is None or (isinstance(value, int) and not isinstance(value, bool)), name, "an integer")
        for name, most in (("max_num_seqs", 2**16), ("max_num_batched_tokens", 2**24), ("max_num_waiting", 2**31)):
            _check(1 <= getattr(self, name) <= most, name, f"between 1 and {most}")
        _check(
            self.block_size % 16 == 0 and 16 <= self.block_size <= 128, "block_size", "a multiple of 16 from 16 to 128"
        )
        _check(self.max_model_len is None or self.max_model_len >= 2, "max_model_len", "at least 2")
        memory_gib = self.kv_cache_memory_gib
        _check(memory_gib is None or 0 < memory_gib <= 2**20, "kv_cache_memory_gib", f"more than 0 and at most {2**20}")
        _check(self.num_threads is None or 1 <= self.num_threads <= 1024, "num_threads", "between 1 and 1024")
        _check(isinstance(self.enable_prefix_caching, bool), "enable_prefix_caching", "true or false")
        _check(self.deterministic is None or isinstance(self.deterministic, bool), "deterministic", "true or false")
        _check(self.quantization in ("none", "int8", "int4"), "quantization", "none, int8 or int4")
        _check(self.dtype in ("auto", "float32", "bfloat16", "float16"), "dtype", "auto, float32, bfloat16 or float16")


def _check(holds: bool, name: str, expected: str) -> None:
    if not holds:
        raise ValueError(f"{name} must be {expected}")
