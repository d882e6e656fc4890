"""What do running streams feel when a long prompt arrives, with and without chunked prefill?

    python benchmarks/chunked_prefill.py

--num-streams requests decode; after --warm-up tokens each, one prompt of --prompt-len tokens arrives. The gaps between
the tokens of the streams are noted from then until the prompt's first token (plus --tail steps), once per budget of
--budgets: one that holds the prompt whole is the engine without chunking. The model has random weights, since only the
time matters, and is made for the run.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that the script runs from a checkout that is not installed

from benchmarks.common import finish, machine, percentile, random_prompts, say
from engine.api import EngineConfig, GenerateRequest, SamplingParams
from engine.core import EngineCore
from engine.runner import load_runner

VOCAB_SIZE = 4096
STREAM_PROMPT_LEN = 64
_NORMS = ("input", "post_attention")


def make_model(directory: Path, args: argparse.Namespace) -> None:
    """A Llama of random weights: config.json and model.safetensors."""
    hidden, head_dim = args.hidden_size, 64
    intermediate, kv_size = 3 * hidden, hidden // 2
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": args.num_layers,
        "num_attention_heads": hidden // head_dim,
        "num_key_value_heads": kv_size // head_dim,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": 2 * args.prompt_len,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "eos_token_id": 2,
    }
    (directory / "config.json").write_text(json.dumps(config))
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB_SIZE, hidden)}
    for layer in range(args.num_layers):
        prefix = f"model.layers.{layer}."
        shapes |= {
            prefix + "self_attn.q_proj.weight": (hidden, hidden),
            prefix + "self_attn.k_proj.weight": (kv_size, hidden),
            prefix + "self_attn.v_proj.weight": (kv_size, hidden),
            prefix + "self_attn.o_proj.weight": (hidden, hidden),
            prefix + "mlp.gate_proj.weight": (intermediate, hidden),
            prefix + "mlp.up_proj.weight": (intermediate, hidden),
            prefix + "mlp.down_proj.weight": (hidden, intermediate),
        }
    torch.manual_seed(0)
    weights = {name: torch.randn(shape) * 0.02 for name, shape in shapes.items()}
    norms = [f"model.layers.{i}.{n}_layernorm.weight" for i in range(args.num_layers) for n in _NORMS]
    weights |= {name: torch.ones(hidden) for name in [*norms, "model.norm.weight"]}
    save_file(weights, directory / "model.safetensors")


def measure(directory: Path, budget: int, args: argparse.Namespace) -> dict[str, Any]:
    """One budget: the streams' gaps in milliseconds while the prompt is computed, and the prompt's own wait."""
    num_streams, max_tokens = args.num_streams, args.prompt_len - STREAM_PROMPT_LEN
    config = EngineConfig(
        model=str(directory), dtype=args.dtype, max_num_seqs=num_streams + 1, max_num_batched_tokens=budget
    )
    runner, info = load_runner(config, lambda stage: None)
    core = EngineCore(config, info, runner)
    params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
    forever = float("inf")
    for i, prompt in enumerate(random_prompts(num_streams, STREAM_PROMPT_LEN, VOCAB_SIZE, seed=1)):
        core.add_request(1, GenerateRequest(request_id=i, prompt_token_ids=prompt, params=params, deadline=forever))
    for _ in range(args.warm_up + num_streams * STREAM_PROMPT_LEN // budget + 1):
        core.step()
    [long_prompt] = random_prompts(1, args.prompt_len, VOCAB_SIZE, seed=2)
    core.add_request(2, GenerateRequest(request_id=0, prompt_token_ids=long_prompt, params=params, deadline=forever))
    start = time.perf_counter()
    last = dict.fromkeys(range(num_streams), start)
    gaps_ms: list[float] = []
    ttft_s, tail = 0.0, args.tail
    while tail:
        outputs = core.step()
        now = time.perf_counter()
        for client, message in ((client, message) for client, messages in outputs.items() for message in messages):
            if client == 1:
                gaps_ms.append(1000 * (now - last[message.request_id]))
                last[message.request_id] = now
            elif not ttft_s:
                ttft_s = now - start
        tail -= bool(ttft_s)
    row = {"budget": budget, "prompt_ttft_ms": round(1000 * ttft_s, 1), "num_gaps": len(gaps_ms)}
    row |= {f"itl_ms_p{percent}": round(percentile(gaps_ms, percent), 1) for percent in (50, 99)}
    row["itl_ms_max"] = round(max(gaps_ms), 1)
    say("  ".join(f"{key} {value}" for key, value in row.items()))
    return row


def main() -> None:
    """Measure every budget and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-streams", type=int, default=8)
    parser.add_argument("--prompt-len", type=int, default=4096)
    parser.add_argument("--budgets", type=int, nargs="+", default=[128, 256, 512, 1024, 8192])
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--hidden-size", type=int, default=512)
    parser.add_argument("--num-layers", type=int, default=8)
    parser.add_argument("--warm-up", type=int, default=8, help="tokens of each stream before the prompt arrives")
    parser.add_argument("--tail", type=int, default=4, help="steps after the prompt's first token")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as directory:
        make_model(Path(directory), args)
        rows = [measure(Path(directory), budget, args) for budget in args.budgets]
    finish({"benchmark": "chunked_prefill", **vars(args), "results": rows, "machine": machine()})


if __name__ == "__main__":
    main()
