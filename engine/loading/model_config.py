"""config.json to `ModelConfig`.

Every key is either used, known to change nothing in inference, or neutral (null, false, zero, empty); any other is
refused by name, since a feature that is ignored gives wrong tokens. Both spellings of rotary settings are read:
`rope_parameters` of transformers 5, and `rope_theta` with `rope_scaling` before it.
"""

from pathlib import Path
from types import MappingProxyType
from typing import Any

from engine.layers import ModelConfig, RopeConfig
from engine.layers.config import Llama3Scaling
from engine.loading.json_file import JsonFile

_USED = frozenset(
    {
        *(
            "architectures",
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "dtype",
            "torch_dtype",
        ),
        *("num_attention_heads", "num_key_value_heads", "head_dim", "rms_norm_eps", "max_position_embeddings"),
        *("hidden_act", "attention_bias", "mlp_bias", "tie_word_embeddings", "eos_token_id", "quantization_config"),
        *("rope_parameters", "rope_theta", "rope_scaling", "sliding_window", "use_sliding_window", "layer_types"),
        *("partial_rotary_factor", "is_encoder_decoder"),
    }
)
# Bookkeeping, training, and generation settings that generation_config.json has replaced.
_HARMLESS = frozenset(
    {
        *("model_type", "transformers_version", "name_or_path", "tokenizer_class", "initializer_range", "use_cache"),
        *("pad_token_id", "bos_token_id", "attention_dropout", "pretraining_tp", "return_dict", "problem_type"),
        *("id2label", "label2id", "max_window_layers", "chunk_size_feed_forward", "task_specific_params"),
        *("finetuning_task", "unsloth_version", "unsloth_fixed", "max_length", "do_sample", "temperature", "top_k"),
        *("top_p", "typical_p", "repetition_penalty", "length_penalty", "num_beams", "num_beam_groups"),
        *("num_return_sequences", "encoder_no_repeat_ngram_size", "no_repeat_ngram_size", "diversity_penalty"),
        *("is_llama_config", "transformers.js_config", "neftune_noise_alpha", "model_max_length"),
    }
)
# transformers' own default where it is not hidden_size / num_attention_heads.
_DEFAULT_HEAD_DIM = MappingProxyType({"Qwen3ForCausalLM": 128})


def read_model_config(directory: Path) -> ModelConfig:
    """The numbers of the model in `directory`. Raises ValueError, of one line, on anything that cannot be served."""
    file = JsonFile.read(directory / "config.json")
    architecture = _architecture(file)
    _refuse_unknown(file)
    _refuse_variants(file)
    num_heads = file.integer("num_attention_heads")
    hidden_size = file.integer("hidden_size")
    head_dim = file.integer("head_dim", _DEFAULT_HEAD_DIM.get(architecture, hidden_size // num_heads))
    num_kv_heads = file.integer("num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise ValueError(
            f"config.json: 'num_key_value_heads' {num_kv_heads} does not divide 'num_attention_heads' {num_heads}"
        )
    if head_dim % 2:
        raise ValueError(f"config.json: 'head_dim' {head_dim} is odd, so its rotary halves have no partners")
    return ModelConfig(
        architecture=architecture,
        vocab_size=file.integer("vocab_size"),
        hidden_size=hidden_size,
        intermediate_size=file.integer("intermediate_size"),
        num_layers=file.integer("num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        rms_norm_eps=file.number("rms_norm_eps", 1e-6),
        max_position_embeddings=file.integer("max_position_embeddings"),
        rope=_rope(file),
        attention_bias=file.boolean("attention_bias", False),
        mlp_bias=file.boolean("mlp_bias", False),
        tie_word_embeddings=file.boolean("tie_word_embeddings", False),
        dtype=_dtype(file),
    )


def _architecture(file: JsonFile) -> str:
    names = file.fields.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise ValueError("config.json: 'architectures' must be a list that names the model's class")
    return names[0]


def _dtype(file: JsonFile) -> str:
    value = file.fields.get("dtype") or file.fields.get("torch_dtype") or "float32"
    if value not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"config.json: 'dtype' must be float32, bfloat16 or float16, not {value!r}")
    return str(value)


def _refuse_unknown(file: JsonFile) -> None:
    if file.fields.get("quantization_config"):
        raise ValueError("config.json: 'quantization_config' is set, but quantized weights are not supported")
    for key, value in file.fields.items():
        if key not in _USED and key not in _HARMLESS and not key.startswith("_") and value:
            raise ValueError(f"config.json: {key!r} is set to {value!r}, a feature that is not supported")


def _refuse_variants(file: JsonFile) -> None:
    fields = file.fields
    if fields.get("hidden_act", "silu") not in ("silu", "swish"):
        raise ValueError(f"config.json: 'hidden_act' {fields['hidden_act']!r} is not supported; supported is silu")
    if fields.get("is_encoder_decoder"):
        raise ValueError("config.json: 'is_encoder_decoder' is set, but only decoders are supported")
    # Qwen writes a window and switches it off beside it.
    if fields.get("use_sliding_window") is not False and fields.get("sliding_window"):
        raise ValueError("config.json: 'sliding_window' is set, but sliding-window attention is not supported")
    for kind in fields.get("layer_types") or ():
        if kind != "full_attention":
            raise ValueError(f"config.json: 'layer_types' holds {kind!r}; supported is full_attention")
    if (fields.get("partial_rotary_factor") or 1.0) != 1.0:
        raise ValueError("config.json: 'partial_rotary_factor' other than 1 is not supported")


def _rope(file: JsonFile) -> RopeConfig:
    fields = file.fields
    given = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    if not isinstance(given, dict):
        raise ValueError("config.json: 'rope_parameters' or 'rope_scaling' must be an object")
    rope: dict[str, Any] = dict(given)
    theta = rope.pop("rope_theta", fields.get("rope_theta"))
    kind = rope.pop("rope_type", rope.pop("type", "default"))
    rope.pop("type", None)
    if (rope.pop("partial_rotary_factor", None) or 1.0) != 1.0:
        raise ValueError("config.json: 'partial_rotary_factor' other than 1 is not supported")
    settings = JsonFile("config.json", {**rope, "rope_theta": theta})
    theta = settings.number("rope_theta", 10000.0)
    if kind == "default":
        _refuse_rope_settings(rope, ())
        return RopeConfig(theta=theta)
    if kind != "llama3":
        raise ValueError(f"config.json: rope type {kind!r} is not supported; supported are default and llama3")
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    _refuse_rope_settings(rope, names)
    low, high = settings.number("low_freq_factor"), settings.number("high_freq_factor")
    if not high > low > 0:
        raise ValueError("config.json: 'high_freq_factor' must be greater than 'low_freq_factor', which is positive")
    scaling = Llama3Scaling(
        factor=settings.number("factor"),
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_position_embeddings=settings.integer("original_max_position_embeddings"),
    )
    return RopeConfig(theta=theta, llama3=scaling)


def _refuse_rope_settings(rope: dict[str, Any], known: tuple[str, ...]) -> None:
    for key, value in rope.items():
        if key not in known and value:
            raise ValueError(f"config.json: rotary setting {key!r} is not supported")
