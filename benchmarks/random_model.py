"""A model directory of random weights in the shape of Qwen3-0.6B, so that engines can be compared without a download.

    python benchmarks/random_model.py /tmp/random-0.6b

Speed does not depend on what the weights are; the shape, the dtype and the vocabulary are those that count. The same
shape and seed give the same files, and a directory that already holds them is left as it is.
"""

import argparse
import dataclasses
import itertools
import json
import string
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that the script runs from a checkout that is not installed

from benchmarks.common import finish

_STD = 0.02  # the initializer_range of such models
_RECIPE_FILE = "random_model.json"
_EOS_ID = 0
_MAX_LEN = 4096


@dataclasses.dataclass(frozen=True)
class Shape:
    """A Qwen3-shaped decoder with tied embeddings, in bfloat16. The defaults are Qwen3-0.6B's."""

    hidden_size: int = 1024
    intermediate_size: int = 3072
    num_layers: int = 28
    num_heads: int = 16
    num_kv_heads: int = 8
    head_dim: int = 128
    vocab_size: int = 151936

    def weight_bytes_per_token(self) -> int:
        """Bytes of weights that one decoded token reads: every matrix once.

        The tied table counts once, as the head; its one row that the token's embedding takes, and the norms, do not.
        """
        query, key_value = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        attention = self.hidden_size * (2 * query + 2 * key_value)
        mlp = 3 * self.hidden_size * self.intermediate_size
        return 2 * (self.num_layers * (attention + mlp) + self.vocab_size * self.hidden_size)

    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values that one token leaves in the cache, in bfloat16."""
        return 2 * 2 * self.num_layers * self.num_kv_heads * self.head_dim


def make_random_model(directory: Path, shape: Shape, seed: int = 0) -> None:
    """Write config.json, the weights, a tokenizer and generation_config.json, unless they are there already."""
    recipe = {"shape": dataclasses.asdict(shape), "seed": seed, "std": _STD, "max_len": _MAX_LEN}
    note = directory / _RECIPE_FILE
    if note.exists() and json.loads(note.read_text()) == recipe:
        return
    directory.mkdir(parents=True, exist_ok=True)
    note.unlink(missing_ok=True)
    files: dict[str, Any] = {
        "config.json": _config(shape),
        "generation_config.json": {"eos_token_id": _EOS_ID, "do_sample": False},
        "tokenizer.json": byte_level_tokenizer(shape.vocab_size),
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|end|>",
            "model_max_length": _MAX_LEN,
        },
    }
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content))
    save_file(dict(_weights(shape, seed)), directory / "model.safetensors", metadata={"format": "pt"})
    note.write_text(json.dumps(recipe))  # last: an interrupted run leaves none


def _config(shape: Shape) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "attention_bias": False,
        "initializer_range": _STD,
        "max_position_embeddings": _MAX_LEN,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": True,
        "use_cache": True,
        "eos_token_id": _EOS_ID,
    }


def _weights(shape: Shape, seed: int) -> Iterator[tuple[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)

    def normal(rows: int, columns: int) -> Tensor:
        return (torch.randn(rows, columns, generator=generator) * _STD).bfloat16()

    def norm(size: int) -> Tensor:
        return torch.ones(size, dtype=torch.bfloat16)

    hidden, query, key_value = shape.hidden_size, shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    yield "model.embed_tokens.weight", normal(shape.vocab_size, hidden)
    for layer in range(shape.num_layers):
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.input_layernorm.weight", norm(hidden)
        yield f"{prefix}.self_attn.q_proj.weight", normal(query, hidden)
        yield f"{prefix}.self_attn.k_proj.weight", normal(key_value, hidden)
        yield f"{prefix}.self_attn.v_proj.weight", normal(key_value, hidden)
        yield f"{prefix}.self_attn.o_proj.weight", normal(hidden, query)
        yield f"{prefix}.self_attn.q_norm.weight", norm(shape.head_dim)
        yield f"{prefix}.self_attn.k_norm.weight", norm(shape.head_dim)
        yield f"{prefix}.post_attention_layernorm.weight", norm(hidden)
        yield f"{prefix}.mlp.gate_proj.weight", normal(shape.intermediate_size, hidden)
        yield f"{prefix}.mlp.up_proj.weight", normal(shape.intermediate_size, hidden)
        yield f"{prefix}.mlp.down_proj.weight", normal(hidden, shape.intermediate_size)
    yield "model.norm.weight", norm(hidden)


def byte_level_tokenizer(vocab_size: int) -> dict[str, Any]:
    """A byte-level BPE tokenizer of exactly `vocab_size` tokens: as long to load as a real one of that size.

    After the special token and the bytes come pairs of letters and digits, then a pair and one more, and so on.
    """
    # The byte alphabet of GPT-2: printable bytes stand for themselves, the others for characters from 256 on.
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    tokens = ["<|end|>", *map(chr, printable), *(chr(256 + index) for index in range(256 - len(printable)))]
    merges: list[list[str]] = []
    singles = list(string.ascii_letters + string.digits)
    longest = singles
    while len(tokens) < vocab_size:
        pairs = list(itertools.islice(itertools.product(longest, singles), vocab_size - len(tokens)))
        longest = [left + right for left, right in pairs]
        merges += map(list, pairs)
        tokens += longest
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": _EOS_ID,
                "content": tokens[_EOS_ID],
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
        ],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": merges,
        },
    }


def add_shape_arguments(parser: argparse.ArgumentParser) -> None:
    """An option for every field of Shape, such as --num-layers."""
    for field in dataclasses.fields(Shape):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=int, default=field.default)


def shape_from(args: argparse.Namespace) -> Shape:
    """The Shape that the options of `add_shape_arguments` describe."""
    return Shape(**{field.name: getattr(args, field.name) for field in dataclasses.fields(Shape)})


def main() -> None:
    """Write the model directory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    add_shape_arguments(parser)
    args = parser.parse_args()
    make_random_model(args.directory, shape_from(args), args.seed)
    finish({"model": str(args.directory), "weight_bytes_per_token": shape_from(args).weight_bytes_per_token()})


if __name__ == "__main__":
    main()
