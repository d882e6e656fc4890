"""transformers' continuous batching on a job of `benchmarks/gpu_jobs.py`: the peer of `benchmarks/gpu_offline.py`.

    python benchmarks/gpu_peer.py --child JOB.json --cut-s 90

One row of JSON on stdout. Written for transformers 5.17, whose manager takes a length per request; flash attention is
used where it is installed, as transformers itself chooses, else the paged form of SDPA. Must not import our engine.
"""

import argparse
import contextlib
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that the script runs from a checkout that is not installed

from benchmarks.common import say
from benchmarks.gpu_jobs import Job
from benchmarks.gpu_models import SHAPES, config_of
from benchmarks.gpu_rows import Row, Rows, add_common_arguments


def random_model(job: Job, device: torch.device) -> Any:
    """The shape in transformers, its weights drawn on the device."""
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = config_of(SHAPES[job.shape])
    config = AutoConfig.for_model(fields["model_type"], **{k: v for k, v in fields.items() if k != "model_type"})
    dtype = torch.float32 if job.smoke else torch.bfloat16
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    return model.to(device).eval()


def generate(model: Any, job: Job, cut_s: float) -> Row:
    """The whole job, or what of it was done after `cut_s`: output tokens and seconds."""
    import transformers
    from transformers import GenerationConfig
    from transformers.generation.configuration_utils import ContinuousBatchingConfig
    from transformers.generation.continuous_batching.utils import WorkloadHints

    generation = GenerationConfig(
        do_sample=True, temperature=job.temperature, top_k=0, top_p=1.0, eos_token_id=-1, pad_token_id=0,
        max_new_tokens=max(job.output_lens),
    )  # fmt: skip
    # No prefix is shared; what is not named here is transformers' own choice for this device and attention.
    batching = ContinuousBatchingConfig(allow_block_sharing=False)
    if job.smoke:
        # The number of tokens in a block has had two names.
        block_size = "page_size" if hasattr(batching, "page_size") else "block_size"
        for name, value in (("num_blocks", 64), (block_size, 32), ("max_batch_tokens", 128)):
            setattr(batching, name, value)
    hints = WorkloadHints(max(map(len, job.prompts)), max(job.output_lens), len(job.prompts))
    manager = model.init_continuous_batching(
        generation_config=generation, continuous_batching_config=batching, workload_hints=hints
    )
    # What it was set to, before it is set back at the end.
    attention = model.config._attn_implementation
    with contextlib.suppress(AttributeError):
        manager.warmup()
    manager.start()
    _finish(manager, [[7] * 16] * 4, [8] * 4, 60.0)  # compiles and loads
    started = time.perf_counter()
    made, num_finished = _finish(manager, job.prompts, job.output_lens, cut_s)
    seconds = time.perf_counter() - started
    row: Row = {
        "transformers": transformers.__version__,
        "seconds": seconds, "output_tok_s": made / seconds, "num_output_tokens": made, "attention": attention,
        "num_finished": num_finished,
    }  # fmt: skip
    if num_finished < len(job.prompts):
        row["sample"] = f"the first {seconds:.0f} s of the job: {made} of {job.num_output_tokens} tokens"
    return row


def _finish(manager: Any, prompts: list[list[int]], lens: list[int], limit_s: float) -> tuple[int, int]:
    """(tokens made, requests finished) when all are done or the time is up. Raises RuntimeError where one failed."""
    end = time.monotonic() + limit_s
    ids = {
        manager.add_request(prompt, max_new_tokens=length, eos_token_id=-1)
        for prompt, length in zip(prompts, lens, strict=True)
    }
    made = num_finished = 0
    while num_finished < len(ids) and time.monotonic() < end:
        result = manager.get_result(timeout=0.2)
        if result is None:
            if not manager.is_running():
                raise RuntimeError("transformers' generation thread has ended")
            continue
        if result.error is not None:
            raise RuntimeError(f"transformers: {result.error}")
        if result.request_id in ids and result.is_finished():
            made += len(result.generated_tokens)
            num_finished += 1
    if num_finished < len(ids):
        # What is under way counts too.
        made += sum(state.generated_len() for state in list(manager.batch_processor.scheduler.active_requests.values()))
    return made, num_finished


def main() -> None:
    """Load, generate, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--child", required=True, metavar="JOB", help="file of benchmarks/gpu_jobs.py")
    parser.add_argument("--cut-s", type=float, default=90, help="stop after this (default: 90)")
    add_common_arguments(parser, 540)
    args = parser.parse_args()
    logging.basicConfig(level="WARNING", stream=sys.stderr)
    job = Job.read(Path(args.child))
    device = torch.device("cpu" if job.smoke else "cuda")
    started = time.perf_counter()
    model = random_model(job, device)
    say(f"  transformers' {job.shape} after {time.perf_counter() - started:.1f} s")
    code = 1
    try:
        Rows("gpu_peer", args).add({"name": f"transformers {job.shape}", **generate(model, job, args.cut_s)})
        code = 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        if sys.exc_info()[1] is not None:
            import traceback

            traceback.print_exc()
        # Its thread goes on with what is left, and would not let this process end.
        os._exit(code)


if __name__ == "__main__":
    main()
