"""`python -m engine.compile_kernels --model DIR --cache-dir DIR` compiles what serving a model launches, with no GPU.

An image that ships the directory, at the same path and as TRITON_CACHE_DIR, starts without compiling. The command goes
through a start and through every form of a step with a runner whose tensors have no memory, so it needs config.json
and no weights. Which binaries there are follows from the model, its dtype, the block size and the architecture, and
from nothing else: not from lengths, batch sizes or the GPU's memory, which no kernel is compiled for, nor from the size
of the GPU, since both forms of attention that follow from it are compiled. Must not know how a kernel is launched.
"""

import argparse
import dataclasses
import functools
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
import triton

from engine import models
from engine.api import EngineConfig, GenerateRequest, SamplingParams
from engine.loading import read_model_config
from engine.runner.memory import check_max_model_len
from engine.runner.meta import MetaDevice
from engine.runner.model_runner import NULL_BLOCK, ModelRunner, RunnerLimits
from engine.runner.start import choose_dtype, load_model
from engine.sequence import SchedulerOutput, Sequence
from kernels.gpu.hardware import KNOWN, Hardware
from kernels.gpu.host_code import build_host_code
from kernels.gpu.kernels import TritonKernels
from kernels.gpu.no_gpu import compiling

_NUM_BLOCKS = 2  # a cache of the null block and one more: no binary follows from its size
_PROMPT_TOKENS = 24
# A GPU of the same architecture may have fewer multiprocessors, or more, than the one that is known: with the first of
# these no sequence's keys are split among programs, with the second all are.
_MULTIPROCESSORS = (1, 2**20)
# What requests can ask of a step, each alone and then side by side. A graph, edits of each kind and log-probabilities
# are forms of their own to the runner or the kernels.
_FORMS: tuple[SamplingParams, ...] = (
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=0.8, top_k=5, top_p=0.9, min_p=0.1, seed=0),
    SamplingParams(temperature=0.0, repetition_penalty=1.1),
    SamplingParams(temperature=1.0, presence_penalty=0.5, frequency_penalty=0.5, seed=0),
    SamplingParams(temperature=1.0, allowed_token_ids=(0,), seed=0),
    SamplingParams(temperature=1.0, logit_bias={0: 1.0}, seed=0),
    SamplingParams(temperature=0.0, logprobs=0),
    SamplingParams(temperature=0.0, logprobs=20),
    SamplingParams(temperature=0.0, logprobs=1, prompt_logprobs=2),
    SamplingParams(temperature=0.0, logprobs=5, repetition_penalty=1.1, logit_bias={0: 1.0}, allowed_token_ids=(0,)),
)


@dataclasses.dataclass(frozen=True, slots=True)
class Compiled:
    """What serving launches on one architecture.

    num_new: binaries that were not in the directory before. missing: why the host's part of a launch is not there too,
    if it is not.
    """

    capability: int
    num_binaries: int
    num_new: int
    took_s: float
    missing: str | None


def meta_runner(config: EngineConfig, hardware: Hardware) -> ModelRunner:
    """A runner of the model in `config.model` as it would be on that GPU, but without memory.

    Its steps launch kernels on tensors of the meta device, and sample token 0. Raises ValueError as a start does.
    """
    directory = Path(config.model)
    if not config.model or not directory.is_dir():
        raise ValueError(f"the model directory {config.model!r} does not exist")
    model_config = read_model_config(directory)
    models.check_architecture(model_config.architecture)
    config = dataclasses.replace(config, load_format="dummy").for_device("cuda")
    assert config.max_num_seqs is not None and config.max_num_batched_tokens is not None
    device = MetaDevice()
    dtype = choose_dtype(config, model_config, torch.device("cuda"))
    loaded = load_model(config, model_config, TritonKernels(hardware), dtype, device.torch_device)
    limits = RunnerLimits(
        num_blocks=_NUM_BLOCKS,
        block_size=config.block_size,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_model_len=check_max_model_len(config, model_config),
    )
    return ModelRunner(loaded, device, limits)


def start(runner: ModelRunner, *, enforce_eager: bool = False) -> None:
    """What a start launches, once the weights are there."""
    runner.warm_up()
    runner.profile()
    if not enforce_eager:
        runner.capture()


def go_through_forms(runner: ModelRunner) -> None:
    """Steps of every form: a chunk of a prompt, its rest, decodes; each kind of request alone, then all together."""
    num_seqs = min(runner.limits.max_num_seqs, len(_FORMS))
    sequences = [_sequence(runner, params, row % num_seqs) for row, params in enumerate(_FORMS)]
    for sequence in sequences:
        _generate(runner, [sequence])
    _generate(runner, [_sequence(runner, params, row) for row, params in enumerate(_FORMS[:num_seqs])])


def _sequence(runner: ModelRunner, params: SamplingParams, row: int) -> Sequence:
    """One whose blocks are all the null block."""
    limits = runner.limits
    num_tokens = max(1, min(_PROMPT_TOKENS, limits.max_model_len - 4, limits.max_num_batched_tokens // len(_FORMS)))
    request = GenerateRequest(request_id=0, prompt_token_ids=[0] * num_tokens, params=params, deadline=0.0)
    sequence = Sequence.from_request(request, client_id=0, index=0, base_seed=0)
    sequence.row = row
    num_blocks = -(-min(num_tokens + 4, limits.max_model_len) // limits.block_size)
    sequence.block_ids = [NULL_BLOCK] * num_blocks
    return sequence


def _generate(runner: ModelRunner, sequences: list[Sequence]) -> None:
    """The first is one step ahead of the others, so that its decodes are beside their prompts."""
    first, *others = sequences
    _step(runner, [first], 1)
    _step(runner, [first], _PROMPT_TOKENS)
    for most_tokens in (1, _PROMPT_TOKENS, 1):
        _step(runner, [first, *others], most_tokens)


def _step(runner: ModelRunner, sequences: list[Sequence], most_tokens: int) -> None:
    scheduled = tuple((sequence, min(most_tokens, sequence.num_uncomputed_tokens)) for sequence in sequences)
    scheduled = tuple((sequence, num_tokens) for sequence, num_tokens in scheduled if num_tokens)
    sampled = runner.collect(runner.launch(SchedulerOutput(scheduled)))
    for (sequence, num_tokens), token_ids in zip(scheduled, sampled.token_ids, strict=True):
        sequence.num_computed_tokens += num_tokens
        sequence.token_ids.extend(token_ids)


def compile_for(config: EngineConfig, cache_dir: str | None, capability: int) -> Compiled:
    """Fill the directory, Triton's own if None, with what serving launches on sm_`capability`.

    Changes Triton's settings for this process.
    """
    triton.knobs.cache.dir = cache_dir or triton.knobs.cache.dir
    # The machine code and what a launch must know of it: a seventh of what Triton would store. Both are found alike.
    triton.knobs.compilation.store_binary_only = True
    binaries: dict[str, Any] = {}
    misses: list[object] = []

    def on_compile(*_: object, cache_hit: bool, **__: object) -> None:
        misses.extend(() if cache_hit else (None,))

    def on_launch(kernel: Any) -> None:
        binaries[kernel.hash] = kernel

    started = time.monotonic()
    triton.knobs.compilation.listener = on_compile
    with compiling(capability, on_launch):
        for runner, sizes in _runners(config, capability):
            if sizes is None:
                start(runner)
            else:
                runner.capture(sizes)
            go_through_forms(runner)
    missing = None
    try:
        build_host_code(binaries.values())
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
        missing = str(error)
    return Compiled(capability, len(binaries), len(misses), time.monotonic() - started, missing)


def _runners(config: EngineConfig, capability: int) -> Iterator[tuple[ModelRunner, tuple[int, ...] | None]]:
    """(a runner, the sizes of decode steps to record; None for a whole start)."""
    known = KNOWN[capability]
    yield meta_runner(config, known), None
    for number in _MULTIPROCESSORS:
        runner = meta_runner(config, dataclasses.replace(known, num_multiprocessors=number))
        yield runner, (1, runner.limits.max_num_seqs)


def main(arguments: list[str] | None = None) -> int:
    """The command; 1, with one line, where the model or a setting cannot be served."""
    options = _parse(arguments)
    cache_dir = None if options.cache_dir is None else str(options.cache_dir.absolute())
    logging.basicConfig(level="WARNING", format="%(message)s", stream=sys.stderr)
    try:
        config = EngineConfig(model=str(options.model), dtype=options.dtype, block_size=options.block_size)
        work = functools.partial(compile_for, config, cache_dir)
        with ProcessPoolExecutor(min(options.jobs, len(options.capability))) as pool:
            for result in pool.map(work, options.capability):
                print(
                    f"sm_{result.capability}: {result.num_binaries} binaries, {result.num_new} of them new, "
                    f"{result.took_s:.0f} s"
                )
                if result.missing is not None:
                    print(f"serving will need a C compiler, as this needs one: {result.missing}", file=sys.stderr)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    directory = Path(cache_dir or triton.knobs.cache.dir)
    sizes = [path.stat().st_size for path in directory.rglob("*") if path.is_file()]
    print(f"{directory}: {len(sizes)} files, {sum(sizes) / 1e6:.1f} MB")
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m engine.compile_kernels", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--model", type=Path, required=True, help="model directory; only config.json is read")
    parser.add_argument(
        "--cache-dir", type=Path, help="directory to fill, whose path serving must have; default: Triton's own"
    )
    parser.add_argument("--capability", type=int, nargs="+", choices=sorted(KNOWN), default=sorted(KNOWN))
    parser.add_argument("--dtype", default="auto", help="as for serving (default: auto)")
    parser.add_argument("--block-size", type=int, default=32, help="as for serving (default: 32)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="architectures at a time")
    options = parser.parse_args(arguments)
    if options.jobs < 1:
        parser.error("--jobs must be at least 1")
    if triton.knobs.runtime.interpret:
        parser.error("TRITON_INTERPRET is set: an interpreted kernel cannot be compiled")
    return options


if __name__ == "__main__":
    sys.exit(main())
