"""How many tokens per second does `LLM.generate` make, beside transformers' `generate` on the same work?

    python benchmarks/offline.py --model models/galley-tiny

Every prompt is random token ids, every output exactly --output-len greedy tokens. Both engines run in this process, in
turns, on the same number of threads; the figure is the median of --repeats.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that the script runs from a checkout that is not installed

from benchmarks.common import TransformersPeer, finish, machine, median_in_turns, random_prompts, say
from engine import LLM, SamplingParams
from engine.llm import TokensPrompt


def measure(llm: LLM, peer: TransformersPeer, batch_size: int, args: argparse.Namespace) -> dict[str, Any]:
    """One batch size: tokens per second of both, and whether they chose the same tokens."""
    prompts = random_prompts(batch_size, args.input_len, llm.vocab_size)
    params = SamplingParams(temperature=0, max_tokens=args.output_len, ignore_eos=True)
    tokens_prompts: list[TokensPrompt] = [{"prompt_token_ids": prompt} for prompt in prompts]

    def ours() -> list[list[int]]:
        return [result.outputs[0].token_ids for result in llm.generate(tokens_prompts, params, use_tqdm=False)]

    def theirs() -> list[list[int]]:
        return peer.generate(prompts, args.output_len)

    ours_ids, their_ids = ours(), theirs()
    same = sum(a == b for a, b in zip(ours_ids, their_ids, strict=True))
    seconds = median_in_turns({"galley": ours, "transformers": theirs}, args.repeats)
    num_tokens = batch_size * args.output_len
    row = {
        "batch_size": batch_size,
        "galley_tok_s": round(num_tokens / seconds["galley"], 1),
        "transformers_tok_s": round(num_tokens / seconds["transformers"], 1),
        "ratio": round(seconds["transformers"] / seconds["galley"], 2),
        "identical_outputs": f"{same}/{batch_size}",
    }
    say("  ".join(f"{key} {value}" for key, value in row.items()))
    return row


def main() -> None:
    """Measure every batch size and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/galley-tiny")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--input-len", type=int, default=128)
    parser.add_argument("--output-len", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    # Each repeat has the same prompts: with the prefix cache only the first would compute them.
    llm = LLM(args.model, dtype=args.dtype, max_num_seqs=max(args.batch_sizes), enable_prefix_caching=False)
    peer = TransformersPeer(args.model, getattr(torch, args.dtype))
    rows = [measure(llm, peer, batch_size, args) for batch_size in args.batch_sizes]
    finish({"benchmark": "offline", **vars(args), "results": rows, "machine": machine()})


if __name__ == "__main__":
    main()
