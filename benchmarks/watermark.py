"""How many blocks should stay free at an admission?

    python benchmarks/watermark.py

The scheduler alone, on a cache that is too small for --num-seqs sequences. Every request has a random prompt and a
random number of tokens to generate, which the scheduler does not know. For each part of --parts (one block in so many
stays free; 0 is none): steps until all are served, tokens computed in all (what a preemption takes is computed again),
preemptions, and sequences per step. Nothing depends on the machine.
"""

import argparse
import random
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that the script runs from a checkout that is not installed

from benchmarks.common import finish, machine, say
from engine.api import GenerateRequest, SamplingParams
from engine.kv_cache import KVCacheManager
from engine.scheduler import Scheduler
from engine.sequence import Sequence

VOCAB_SIZE = 1000
NO_WATERMARK = 2**62


def serve(part: int, seed: int, args: argparse.Namespace) -> tuple[int, int, int, int]:
    """All requests; steps, tokens computed, preemptions, and scheduled sequences summed over the steps."""
    generator = random.Random(seed)  # so the requests are the same for every part
    scheduler = Scheduler(
        KVCacheManager(args.num_blocks + 1, args.block_size),
        max_num_seqs=args.num_seqs,
        max_num_batched_tokens=args.max_num_batched_tokens,
        max_num_waiting=args.num_requests,
        watermark_part=part or NO_WATERMARK,
    )
    for i in range(args.num_requests):
        prompt = [generator.randrange(VOCAB_SIZE) for _ in range(generator.randint(1, args.max_input_len))]
        params = SamplingParams(max_tokens=generator.randint(1, args.max_output_len))
        request = GenerateRequest(request_id=i, prompt_token_ids=prompt, params=params, deadline=float("inf"))
        scheduler.add(Sequence.samples_of(request, 0, base_seed=0))
    num_steps = num_tokens = num_scheduled = 0
    while scheduler.has_unfinished():
        output = scheduler.schedule()
        scheduler.commit()
        num_steps += 1
        num_tokens += output.num_batched_tokens
        num_scheduled += len(output.scheduled)
        for sequence, num in output.scheduled:
            sequence.num_computed_tokens += num
            if sequence.num_uncomputed_tokens == 0:
                sequence.token_ids.append(generator.randrange(VOCAB_SIZE))
                if sequence.num_output_tokens == sequence.request.params.max_tokens:
                    scheduler.finish(sequence, "length")
    return num_steps, num_tokens, scheduler.num_preemptions, num_scheduled


def main() -> None:
    """Measure every part and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=int, nargs="+", default=[0, 100, 64, 32, 16, 8])
    parser.add_argument("--num-blocks", type=int, default=400)
    parser.add_argument("--block-size", type=int, default=32)
    parser.add_argument("--num-seqs", type=int, default=64)
    parser.add_argument("--max-num-batched-tokens", type=int, default=1024)
    parser.add_argument("--num-requests", type=int, default=300)
    parser.add_argument("--max-input-len", type=int, default=500)
    parser.add_argument("--max-output-len", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=3, help="with other requests each time; figures are means")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for part in args.parts:
        runs = [serve(part, seed, args) for seed in range(args.repeats)]
        steps, tokens, preemptions, scheduled = (sum(values) / args.repeats for values in zip(*runs, strict=True))
        rows.append(
            {
                "part": part,
                "steps": round(steps),
                "tokens_computed": round(tokens),
                "preemptions": round(preemptions, 1),
                "seqs_per_step": round(scheduled / steps, 2),
            }
        )
        say("  ".join(f"{key} {value}" for key, value in rows[-1].items()))
    finish({"benchmark": "watermark", **vars(args), "results": rows, "machine": machine()})


if __name__ == "__main__":
    main()
