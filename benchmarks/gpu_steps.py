"""How long are the engine's steps on the GPU, beside what its memory and its matrix units allow?

    python benchmarks/gpu_steps.py                                   # three models, and two comparisons of each
    python benchmarks/gpu_steps.py --shapes llama-3.1-8b --variants default
    python benchmarks/gpu_steps.py --smoke                           # proves the script, on the CPU

Random weights at the published shapes, and the engine's own loop: requests go into EngineCore, and a step's time is
the wall time from one return of `step` to the next, with every sequence decoding at a context of 1024 on average.
`limit_ms` is the fewest bytes of the step at 4.3 TB/s. `host_ms` is the step's time less what the host spent waiting
for the GPU; `idle_share` is the part of the time in which no kernel ran, from the profiler, and `between_share` that of
gaps longer than those inside a graph. Each model and variant has a process of its own.
"""

import argparse
import functools
import itertools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that the script runs from a checkout that is not installed

from benchmarks.common import percentile, say
from benchmarks.gpu_models import MATRIX_FLOPS_S, SHAPES, GpuShape, make_model_dir
from benchmarks.gpu_rows import Row, Rows, add_common_arguments, bar, needs_gpu
from benchmarks.gpu_trace import Trace, idle_shares, kernel_times

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "eager": {"enforce_eager": True},
    "no overlap": {"async_scheduling": False},
}
_BATCHES = {"default": (1, 32, 128, 256), "eager": (1, 128), "no overlap": (1, 128)}
_CONTEXT, _NUM_STEPS, _NUM_TRACED, _NUM_SETTLING = 1024, 120, 24, 8
_PREFILL_LEN = 2048
_MAX_IDLE, _MAX_HOST_MS, _MIN_PREFILL = 0.03, 0.3, 0.65
# A child that hangs must leave time for the others; loading, compiling and capturing take the most of it.
_MOST_S, _LEAST_S = 200.0, 30.0


def decoding(stepper: Any, batch_size: int, num_steps: int, args: argparse.Namespace) -> Iterator[Any]:
    """Steps in which each of `batch_size` sequences gets a token, at args.context on average; `num_steps` or more."""
    settling = 2 if args.smoke else _NUM_SETTLING
    # The first prompts to be computed are that many tokens ahead of the last, and end as much sooner.
    lead = 2 + batch_size * args.context // stepper.max_num_batched_tokens
    input_len = args.context - lead // 2 - settling - num_steps // 2
    stepper.add(batch_size, input_len, lead + num_steps + 2 * settling)
    num_full = 0
    for step in stepper.steps():
        num_full = num_full + 1 if step.num_tokens == batch_size else 0
        if num_full > settling:
            yield step


def measure_decode(stepper: Any, shape: GpuShape, batch_size: int, args: argparse.Namespace) -> list[Row]:
    """The times of `args.num_steps` decode steps of `batch_size` sequences."""
    name = f"{shape.name}, batch {batch_size}, {args.child}"
    timed = list(decoding(stepper, batch_size, args.num_steps, args))[: args.num_steps]
    if len(timed) < args.num_steps:
        raise RuntimeError(f"only {len(timed)} steps had a token of each sequence")
    walls = [1e3 * step.wall_s for step in timed]
    limit_ms = shape.decode_limit_ms(batch_size, args.context)
    median = statistics.median(walls)
    row: Row = {
        "name": f"decode {name}",
        "ms": median,
        "p99_ms": percentile(walls, 99),
        "limit_ms": limit_ms,
        "limit_share": limit_ms / median,
        "tok_s": 1e3 * batch_size / median,
        "host_ms": statistics.median(1e3 * step.host_s for step in timed),
        "num_steps": len(walls),
    }
    bars = dict(shape.bars_ms) if args.child == "default" else {}
    if batch_size in bars:
        row |= bar(median, bars[batch_size])
    rows = [row]
    if args.child == "default" and batch_size == 256:
        rows.append({"name": f"host work {name}", "ms": row["host_ms"], **bar(row["host_ms"], _MAX_HOST_MS)})
    return rows


def measure_idle(stepper: Any, shape: GpuShape, batch_size: int, args: argparse.Namespace) -> list[Row]:
    """How long no kernel runs in decode steps, and what the others take. Nothing where there is no GPU.

    After all that is timed: a profiler that has once been on may leave every launch a little slower.
    """
    num_steps = 4 if args.smoke else _NUM_TRACED
    steps = decoding(stepper, batch_size, num_steps + 1, args)
    next(steps)
    trace = Trace()
    with trace.recorded():
        num_traced = len(list(itertools.islice(steps, num_steps)))
    for _ in steps:
        pass
    shares = idle_shares(trace.events)
    if shares is None:
        return []
    row: Row = {"name": f"idle {shape.name}, batch {batch_size}", "idle_share": shares[0], "between_share": shares[1]}
    row |= bar(shares[1], _MAX_IDLE)
    return [{**row, "kernels_us_and_launches_per_step": kernel_times(trace.events, num_traced)}]


def measure_prefill(stepper: Any, shape: GpuShape, args: argparse.Namespace) -> list[Row]:
    """A prompt alone, from its arrival to its first token; and many at once."""
    length = 64 if args.smoke else _PREFILL_LEN
    flops = shape.prefill_flops(length)
    rows = []
    for name, num_prompts, repeats in (("alone", 1, 10), ("16 at once", 16, 3)):
        seconds = []
        for _ in range(1 + repeats):  # the first warms up
            stepper.add(num_prompts, length, 1)
            started = time.perf_counter()
            stepper.run()
            seconds.append((time.perf_counter() - started) / num_prompts)
        each = statistics.median(seconds[1:])
        share = flops / each / MATRIX_FLOPS_S
        row: Row = {
            "name": f"prefill {shape.name}, {length} tokens, {name}",
            "ms": 1e3 * each,
            "tok_s": length / each,
            "matrix_share": share,
        }
        if shape.name == "llama-3.1-8b" and num_prompts == 1:
            row |= bar(share, _MIN_PREFILL, at_least=True)
        rows.append(row)
    return rows


def child(args: argparse.Namespace) -> int:
    """One model and variant, in this process."""
    from benchmarks.gpu_engine import Stepper, load_core, settings_for

    rows = Rows("gpu_steps", args)
    shape = SHAPES[args.shapes[0]]
    with tempfile.TemporaryDirectory() as folder:
        settings = settings_for(shape, smoke=args.smoke, **VARIANTS[args.child])
        core = load_core(make_model_dir(shape, Path(folder) / shape.name), settings)
    stepper = Stepper(core, settings["max_num_batched_tokens"])
    batches = args.batches or ((1, 4) if args.smoke else _BATCHES[args.child])
    attempts: list[tuple[str, Callable[[], list[Row]]]] = [
        (f"decode {shape.name}, batch {size}", functools.partial(measure_decode, stepper, shape, size, args))
        for size in batches
    ]
    if args.child == "default":
        attempts.append((f"prefill {shape.name}", functools.partial(measure_prefill, stepper, shape, args)))
        attempts += [
            (f"idle {shape.name}, batch {size}", functools.partial(measure_idle, stepper, shape, size, args))
            for size in batches
        ]
    for name, measure in attempts:
        rows.attempt(name, 1.0, measure)
        if rows.rows and rows.rows[-1].get("failed"):
            stepper.core.abort_client(0)
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["llama-3.1-8b", "qwen3-0.6b", "qwen3-14b"])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--batches", nargs="+", type=int, help="batch sizes; those of the issue if not given")
    parser.add_argument("--context", type=int, default=_CONTEXT, help="mean tokens of a sequence (default: 1024)")
    parser.add_argument("--num-steps", type=int, default=_NUM_STEPS, help="timed ones, of each (default: 120)")
    parser.add_argument("--child", choices=VARIANTS, help=argparse.SUPPRESS)
    add_common_arguments(parser, 540)
    args = parser.parse_args()
    if args.smoke:
        args.shapes, args.context, args.num_steps = ["smoke"], 64, 12
    return args


def main() -> int:
    """Every variant of every model, the plain engine first."""
    args = _parse()
    needs_gpu(smoke=args.smoke)
    if args.child:
        return child(args)
    rows = Rows("gpu_steps", args)
    for variant in args.variants:
        for shape in args.shapes:
            name = f"{shape}, {variant}"
            say(name)
            command = [__file__, "--child", variant, "--shapes", shape, "--context", str(args.context)]
            command += ["--num-steps", str(args.num_steps), f"--limit-s={min(_MOST_S, max(1.0, rows.left_s - 5)):.0f}"]
            command += [*(["--batches", *map(str, args.batches)] if args.batches else [])]
            command += ["--smoke"] if args.smoke else []
            rows.run(name, 5.0 if args.smoke else _LEAST_S, command, _MOST_S)
    return rows.finish()


if __name__ == "__main__":
    sys.exit(main())
