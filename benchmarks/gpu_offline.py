"""How many tokens per second does a batch job make on the GPU, beside transformers' continuous batching?

    python benchmarks/gpu_offline.py                              # the 0.6B and the 14B shape
    python benchmarks/gpu_offline.py --shapes qwen3-0.6b --skip-peer
    python benchmarks/gpu_offline.py --smoke                      # proves the script, on the CPU

The job is that of nano-vllm and mini-sglang: 256 sequences, input and output lengths uniform in 100 to 1024, seed 0,
temperature 0.6, no end of sequence. Random weights of the same shape in bfloat16, each engine in a process of its own,
one after the other. The clock runs from the first prompt to the last token; loading and warm-up are not in it.
transformers is cut short after --peer-s seconds, and the row says so: then its rate is that of the tokens it had made
by then, with all prompts in it and without the thin end of the job. Give it more time where the ratio is close.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that the script runs from a checkout that is not installed

from benchmarks.common import say
from benchmarks.gpu_jobs import Job, mixed_job
from benchmarks.gpu_models import SHAPES, make_model_dir
from benchmarks.gpu_rows import Row, Rows, add_common_arguments, bar, needs_gpu

_MIN_RATIO = 2.0
_MOST_S = 180.0  # of our own process
_PEER_START_S = 90.0  # that transformers may take to be ready, on top of --peer-s
_GALLEY_LEAST_S, _PEER_LEAST_S = 45.0, 60.0


def run_galley(job: Job) -> Row:
    """The job on LLM, in this process: seconds, and output tokens per second."""
    from benchmarks.gpu_engine import settings_for
    from engine import LLM, SamplingParams
    from engine.llm import TokensPrompt

    shape = SHAPES[job.shape]
    with tempfile.TemporaryDirectory() as folder:
        path = make_model_dir(shape, Path(folder) / shape.name)
        started = time.perf_counter()
        llm = LLM(str(path), **settings_for(shape, smoke=job.smoke, **job.settings))
        load_s = time.perf_counter() - started
    prompts: list[TokensPrompt] = [{"prompt_token_ids": prompt} for prompt in job.prompts]
    params = [
        SamplingParams(temperature=job.temperature, max_tokens=length, ignore_eos=True) for length in job.output_lens
    ]
    # Other prompts than the job's, as many as there are sequences in a step.
    warm = [{"prompt_token_ids": [20 + i % 50] * 16} for i in range(min(64, len(prompts)))]
    llm.generate(warm, SamplingParams(temperature=job.temperature, max_tokens=8, ignore_eos=True), use_tqdm=False)  # type: ignore[arg-type]
    started = time.perf_counter()
    results = llm.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - started
    made = sum(len(result.outputs[0].token_ids) for result in results)
    if made != job.num_output_tokens:
        raise RuntimeError(f"{made} tokens were made, {job.num_output_tokens} asked for")
    return {"seconds": seconds, "output_tok_s": made / seconds, "num_output_tokens": made, "load_s": load_s}


def measure(rows: Rows, name: str, job: Job, args: argparse.Namespace) -> None:
    """Both engines on one job, and their ratio."""
    with tempfile.TemporaryDirectory() as folder:
        path = job.write(Path(folder) / "job.json")
        scale = 0.1 if args.smoke else 1.0
        say(f"{name}: {job.num_output_tokens} output tokens")
        command = [__file__, "--child", str(path)]
        ours = rows.run(f"galley {name}", scale * _GALLEY_LEAST_S, command, _MOST_S)
        if args.skip_peer:
            return
        peer = [str(Path(__file__).with_name("gpu_peer.py")), "--child", str(path), f"--cut-s={args.peer_s}"]
        limit_s = args.peer_s + _PEER_START_S
        theirs = rows.run(f"transformers {name}", scale * _PEER_LEAST_S, peer, limit_s)
    rates = [found[-1].get("output_tok_s") if found else None for found in (ours, theirs)]
    if rates[0] and rates[1]:
        ratio = rates[0] / rates[1]
        rows.add({"name": f"ratio {name}", "ratio": ratio, **bar(ratio, _MIN_RATIO, at_least=True)})


def child(args: argparse.Namespace) -> int:
    """One job on our engine."""
    job = Job.read(Path(args.child))
    Rows("gpu_offline", args).add({"name": f"galley {job.shape}", **run_galley(job)})
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["qwen3-0.6b", "qwen3-14b"])
    parser.add_argument("--num-sequences", type=int, default=256, help="of the job (default: 256, the published one)")
    parser.add_argument("--peer-s", type=float, default=60, help="cut transformers short after this (default: 60)")
    parser.add_argument("--skip-peer", action="store_true", help="do not measure transformers")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    add_common_arguments(parser, 540)
    args = parser.parse_args()
    if args.smoke:
        args.shapes, args.num_sequences, args.peer_s = ["smoke"], 6, min(args.peer_s, 20)
    return args


def main() -> int:
    """Every shape, both engines."""
    args = _parse()
    if args.child:
        return child(args)
    needs_gpu(smoke=args.smoke)
    rows = Rows("gpu_offline", args)
    for shape in args.shapes:
        measure(rows, shape, mixed_job(shape, smoke=args.smoke, num_sequences=args.num_sequences), args)
    return rows.finish()


if __name__ == "__main__":
    sys.exit(main())
