"""Makes a model directory in Hugging Face's layout of a checkpoint: config, bf16 weights, tokenizer, chat template.

`python -m models.training.export --checkpoint PATH --tokenizer PATH --out DIR`. Before it is done it loads the
directory with transformers, and checks that the weights give the network's own logits and the template the corpus's own
text.
"""

import argparse
import json
import random
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from models.training.batches import TOKENS_PER_STEP, encode
from models.training.chat import render
from models.training.corpus import conversation
from models.training.draws import Draw
from models.training.network import RMS_EPS, ROPE_THETA, Network, Shape

MAX_POSITIONS = 16_384
MAX_BYTES = 16_000_000
TEMPLATE = Path(__file__).parent / "chat_template.jinja"

_LAYER_NAMES = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "input_norm": "input_layernorm",
    "mlp_norm": "post_attention_layernorm",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
}


def config_of(shape: Shape, tokenizer: Tokenizer) -> dict[str, Any]:
    """config.json. <|im_end|> ends an answer; <|endoftext|> pads."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",  # the name of "dtype" before transformers 5
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "max_position_embeddings": MAX_POSITIONS,
        "rms_norm_eps": RMS_EPS,
        "rope_theta": ROPE_THETA,
        "rope_scaling": None,
        "sliding_window": None,
        "use_sliding_window": False,
        "max_window_layers": shape.num_layers,
        "tie_word_embeddings": True,
        "use_cache": True,
        "bos_token_id": None,
        "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
        "pad_token_id": tokenizer.token_to_id("<|endoftext|>"),
    }


def tokenizer_config() -> dict[str, Any]:
    """tokenizer_config.json, readable by transformers 4 and 5."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "bos_token": None,
        "unk_token": None,
        "add_bos_token": False,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": MAX_POSITIONS,
    }


def generation_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """Greedy: a model that has to add and to copy gains nothing from chance."""
    end, pad = tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")
    return {"do_sample": False, "eos_token_id": [end, pad], "pad_token_id": pad}


def named_weights(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The network's weights in bf16 under the names of Qwen3ForCausalLM."""
    named = {"model.embed_tokens.weight": weights["embedding"], "model.norm.weight": weights["final_norm"]}
    for name, weight in weights.items():
        if name.startswith("layers."):
            _, index, part = name.split(".")
            named[f"model.layers.{index}.{_LAYER_NAMES[part]}.weight"] = weight
    return {name: weight.to(torch.bfloat16).contiguous() for name, weight in named.items()}


def write_directory(checkpoint: Path, tokenizer_file: Path, out: Path) -> None:
    """Writes all files but the model card. Raises ValueError when the directory outgrows MAX_BYTES."""
    saved = torch.load(checkpoint)
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    out.mkdir(parents=True, exist_ok=True)
    weights_file = out / "model.safetensors"
    save_file(named_weights(saved["weights"]), weights_file, metadata={"format": "pt"})
    weights_file.chmod(0o644)
    for name, content in (
        ("config.json", config_of(Shape(**saved["shape"]), tokenizer)),
        ("tokenizer_config.json", tokenizer_config()),
        ("generation_config.json", generation_config(tokenizer)),
    ):
        (out / name).write_text(json.dumps(content, indent=2) + "\n")
    tokenizer.save(str(out / "tokenizer.json"))
    shutil.copy(TEMPLATE, out / "chat_template.jinja")
    if (size := sum(path.stat().st_size for path in out.iterdir())) > MAX_BYTES:
        raise ValueError(f"{out} has {size} bytes, more than {MAX_BYTES}")


def check_template(out: Path, num_conversations: int = 300) -> None:
    """Raises ValueError when the template renders a conversation differently from what the model was trained on."""
    tokenizer = AutoTokenizer.from_pretrained(out)
    draw = Draw(random.Random(5))
    for _ in range(num_conversations):
        made = conversation(draw)
        trained = "".join(text for text, _ in render(made))
        options: dict[str, Any] = {"tools": made.tools or None, "enable_thinking": made.enable_thinking}
        if (got := tokenizer.apply_chat_template(made.messages, tokenize=False, **options)) != trained:
            raise ValueError(f"the template gives\n{got}\nand the corpus\n{trained}")
        if (
            tokenizer(got, add_special_tokens=False)["input_ids"]
            != encode(Tokenizer.from_file(str(out / "tokenizer.json")), [made])[0].ids
        ):
            raise ValueError(f"encoded whole and in pieces, this differs: {trained}")


@torch.no_grad()
def check_weights(checkpoint: Path, out: Path) -> None:
    """Raises ValueError when transformers predicts other tokens than the trained network (bf16 leaves near-ties)."""
    saved = torch.load(checkpoint)
    network = Network(Shape(**saved["shape"]))
    network.load_state_dict(saved["weights"])
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    draw = Draw(random.Random(6))
    ids = encode(Tokenizer.from_file(str(out / "tokenizer.json")), (conversation(draw) for _ in range(40)))
    row = torch.tensor([token for example in ids for token in example.ids][:512])
    padded = torch.zeros(TOKENS_PER_STEP, dtype=torch.long)
    padded[:512] = row
    ours = network.logits(network(padded, 512)[:512])
    agreement = (ours.argmax(-1) == model(row[None]).logits[0].argmax(-1)).float().mean().item()
    print(f"same most likely token at {agreement:.1%} of positions")
    if agreement < 0.97:
        raise ValueError("transformers and the network disagree")


def main() -> None:
    """Writes the directory and checks it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    write_directory(options.checkpoint, options.tokenizer, options.out)
    check_template(options.out)
    check_weights(options.checkpoint, options.out)


if __name__ == "__main__":
    main()
