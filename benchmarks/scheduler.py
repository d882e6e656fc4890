"""What does a step cost besides the model, and what does the prefix cache cost when nothing is ever found in it?

    python benchmarks/scheduler.py

1. --num-seqs sequences decode on the real runner over a model that computes nothing: everything of a step is there
   (schedule, batch, sampling rows, update, output messages and their encoding) but forward, logits and sampling. With
   --host-only the device's half of the batch is left out too, and steps overlap: what is left is what the host does per
   step beside a GPU, without the calls of CUDA.
2. The same runner serves --num-requests prompts of random tokens, without and with the prefix cache in turns. What the
   cache adds to a request is compared with the time that the request takes with --model.
"""

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that the script runs from a checkout that is not installed

from benchmarks.common import finish, machine, percentile, random_prompts, say, timed
from engine import LLM, SamplingParams
from engine.api import EngineConfig, GenerateRequest, ModelInfo, Outputs, encode_message
from engine.core import EngineCore
from engine.llm import TokensPrompt
from engine.loading import read_model_config
from engine.runner.device import Finished, HostDevice, Pending
from engine.runner.model_runner import LoadedModel, ModelRunner, RunnerLimits
from kernels import for_device

PHASES = ("schedule", "launch", "collect", "update")
_TOKEN = 100
_CLIENT = 1


class NullModel:
    """Answers at once: the same hidden states and logits for every step."""

    def __init__(self, max_num_tokens: int) -> None:
        self._hidden = torch.zeros(max_num_tokens, 1)

    def forward(self, input_ids: Tensor, *_: Any) -> Tensor:
        """[T, 1] zeros."""
        return self._hidden[: len(input_ids)]

    def compute_logits(self, hidden: Tensor) -> Tensor:
        """The rows as they are: nobody looks at them."""
        return hidden


class NullDevice(HostDevice):
    """A device that never computes anything: its steps sample the same token always."""

    def __init__(self, max_num_seqs: int) -> None:
        self._tokens = torch.full((max_num_seqs,), _TOKEN)

    def submit(self, work: Any) -> Pending:
        """Look how many rows the step samples, and that is that."""
        [step] = work.args
        return Finished((self._tokens[: len(step.sampled)],))


class NullKernels:
    """Samples the same token always; all else is the CPU's."""

    def __init__(self, max_num_seqs: int) -> None:
        self._kernels = for_device(torch.device("cpu"))
        self._tokens = torch.full((max_num_seqs,), _TOKEN)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kernels, name)

    def sample(self, logits: Tensor, *_: Any) -> Tensor:
        """One token for every row."""
        return self._tokens[: len(logits)]


def null_core(args: argparse.Namespace, *, prefix_caching: bool, num_blocks: int) -> EngineCore:
    """A core over the real runner, whose model computes nothing and has no layers."""
    model_config = dataclasses.replace(read_model_config(Path(args.model)), num_layers=0)
    max_model_len = model_config.max_position_embeddings
    config = EngineConfig(
        max_num_seqs=args.num_seqs,
        max_num_batched_tokens=args.max_num_batched_tokens,
        max_num_waiting=2**31,
        block_size=args.block_size,
        enable_prefix_caching=prefix_caching,
        async_scheduling=args.host_only,
    )
    limits = RunnerLimits(
        num_blocks=num_blocks,
        block_size=args.block_size,
        max_num_seqs=args.num_seqs,
        max_num_batched_tokens=args.max_num_batched_tokens,
        max_model_len=max_model_len,
    )
    model: Any = NullModel(args.max_num_batched_tokens)
    kernels: Any = NullKernels(args.num_seqs)
    device = NullDevice(args.num_seqs) if args.host_only else HostDevice()
    runner = ModelRunner(LoadedModel(model, kernels, model_config, torch.float32), device, limits)
    info = ModelInfo(
        served_name="null",
        model_dir=args.model,
        created_s=0,
        vocab_size=model_config.vocab_size,
        max_model_len=max_model_len,
        eos_token_ids=(2,),
    )
    return EngineCore(config, info, runner)


def add(core: EngineCore, prompts: list[list[int]], max_tokens: int) -> None:
    """Queue one sampled request per prompt."""
    params = SamplingParams(max_tokens=max_tokens, temperature=0.8, top_p=0.95, ignore_eos=True)
    for i, prompt in enumerate(prompts):
        core.add_request(
            _CLIENT, GenerateRequest(request_id=i, prompt_token_ids=prompt, params=params, deadline=float("inf"))
        )


def step_and_encode(core: EngineCore) -> int:
    """One step and the message of its outputs, as the engine process makes it; the number of outputs."""
    outputs = core.step().get(_CLIENT, [])
    encode_message(Outputs(outputs))
    return len(outputs)


class Stopwatch:
    """Wraps a method of an object and keeps the seconds that each call of it takes."""

    def __init__(self, owner: Any, name: str) -> None:
        self.seconds: list[float] = []
        self._method: Callable[..., Any] = getattr(owner, name)
        setattr(owner, name, self)

    def __call__(self, *args: Any) -> Any:
        """The method."""
        start = time.perf_counter()
        result = self._method(*args)
        self.seconds.append(time.perf_counter() - start)
        return result


def step_overhead(args: argparse.Namespace) -> dict[str, Any]:
    """Microseconds of a decode step of all sequences: as a whole, then its phases."""
    # The first sequences already decode while the last one's prompt is computed.
    num_first_steps = 2 * args.num_seqs * (1 + args.input_len // args.max_num_batched_tokens)
    output_len = 2 * args.num_steps + num_first_steps
    blocks_per_seq = -(-(args.input_len + output_len) // args.block_size)
    blocks_for_one = -(-read_model_config(Path(args.model)).max_position_embeddings // args.block_size)
    core = null_core(args, prefix_caching=True, num_blocks=max(args.num_seqs * blocks_per_seq, blocks_for_one) + 100)
    add(core, random_prompts(args.num_seqs, args.input_len, core.model.vocab_size), output_len)
    while step_and_encode(core) < args.num_seqs:
        pass
    whole = [timed(lambda: step_and_encode(core)) for _ in range(args.num_steps)]
    owners = {"schedule": core.scheduler, "launch": core.runner, "collect": core.runner, "_update": core}
    watches = {name.strip("_"): Stopwatch(owner, name) for name, owner in owners.items()}
    for _ in range(args.num_steps):
        assert step_and_encode(core) == args.num_seqs
    result = {
        "step_us_min": round(1e6 * min(whole), 1),
        "step_us_p50": round(1e6 * statistics.median(whole), 1),
        "step_us_p99": round(1e6 * percentile(whole, 99), 1),
    }
    for name in PHASES:
        result[f"{name}_us_p50"] = round(1e6 * statistics.median(watches[name].seconds), 1)
    return result


def cache_cost(args: argparse.Namespace) -> dict[str, Any]:
    """What the prefix cache adds to a request of which nothing is cached, in microseconds and as a share of it."""
    vocab_size = read_model_config(Path(args.model)).vocab_size
    # So few blocks that each new one evicts another: the dear case.
    blocks_for_one = -(-read_model_config(Path(args.model)).max_position_embeddings // args.block_size)
    num_blocks = max(
        blocks_for_one + 1, args.num_seqs * (-(-(args.input_len + args.output_len) // args.block_size) + 1)
    )
    prompts = random_prompts(args.num_requests, args.input_len, vocab_size)
    cores = {on: null_core(args, prefix_caching=on, num_blocks=num_blocks) for on in (False, True)}
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for repeat in range(args.repeats + 1):
        for on, core in cores.items():
            # Other prompts each time: nothing is ever found.
            add(core, [[(t + repeat) % vocab_size for t in prompt] for prompt in prompts], args.output_len)

            def drain(core: EngineCore = core) -> None:
                while core.has_work():
                    step_and_encode(core)

            taken = timed(drain)
            if repeat:  # the first one warms up
                seconds[on].append(taken)
    off_s, on_s = (min(seconds[on]) / args.num_requests for on in (False, True))
    num_real = min(args.num_requests, args.num_seqs + 2)
    llm = LLM(args.model, dtype="float32", max_num_seqs=args.num_seqs)
    params = SamplingParams(temperature=0.8, top_p=0.95, max_tokens=args.output_len, ignore_eos=True)
    real: list[TokensPrompt] = [{"prompt_token_ids": prompt} for prompt in prompts[:num_real]]
    llm.generate(real[:2], params, use_tqdm=False)
    real_s = timed(lambda: llm.generate(real[2:], params, use_tqdm=False)) / (num_real - 2)
    return {
        "host_us_per_request_off": round(1e6 * off_s, 1),
        "host_us_per_request_on": round(1e6 * on_s, 1),
        "model_us_per_request": round(1e6 * real_s, 1),
        "cost_percent": round(100 * (on_s - off_s) / real_s, 3),
    }


def main() -> None:
    """Measure both and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/galley-tiny", help="the model that gives the times to compare with")
    parser.add_argument("--num-seqs", type=int, default=64)
    parser.add_argument("--num-steps", type=int, default=500)
    parser.add_argument("--input-len", type=int, default=512)
    parser.add_argument("--output-len", type=int, default=64)
    parser.add_argument("--num-requests", type=int, default=256)
    parser.add_argument("--max-num-batched-tokens", type=int, default=1024)
    parser.add_argument("--host-only", action="store_true", help="steps overlap, and the device's half is left out")
    parser.add_argument("--block-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    steps, cache = step_overhead(args), cache_cost(args)
    for key, value in {**steps, **cache}.items():
        say(f"{key:28} {value}")
    finish({"benchmark": "scheduler", **vars(args), "step": steps, "prefix_cache": cache, "machine": machine()})


if __name__ == "__main__":
    main()
