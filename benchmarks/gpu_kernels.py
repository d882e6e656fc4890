"""How close are the Triton kernels to what the GPU can do, and how far ahead of torch?

    python benchmarks/gpu_kernels.py
    python benchmarks/gpu_kernels.py --only decode norm       # those whose name holds one of the words
    python benchmarks/gpu_kernels.py --smoke                  # proves the script without a GPU, in Triton's interpreter

Needs torch, triton and numpy alone. First the ceilings are measured: bytes/s of a copy, read and written, and flop/s of
a bfloat16 product. Then each kernel at its points: `copy` and `matrix` are its shares of the two, from the fewest bytes
and operations of the work. Times are of CUDA graph replays (`benchmarks/gpu_timing.py` says how), each taken twice;
`+-` is how far the two are apart. Beside it torch's way on the same work. Every result is first compared with the
reference: WRONG is one that is off by more than the type explains.
"""

import argparse
import dataclasses
import functools
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that the script runs from a checkout that is not installed

from benchmarks import gpu_sampling_work, gpu_work
from benchmarks.common import finish, say
from benchmarks.gpu_timing import Ceilings, Clock, GraphClock, HostClock, ceilings, gpu_machine
from benchmarks.gpu_work import Heads, Place, Work

# Rounding of bfloat16 results and of the products' bfloat16 operands; for samplers, one row in 64.
MAX_ERROR = 2e-2


@dataclasses.dataclass(frozen=True, slots=True)
class Bar:
    """What a kernel must reach: at least this share of a ceiling, or at most these microseconds."""

    of: Literal["copy", "matrix", "us"]
    limit: float

    def __str__(self) -> str:
        return f"<= {self.limit:g} us" if self.of == "us" else f">= {self.limit:.0%} {self.of}"

    def is_met(self, row: dict[str, Any]) -> bool:
        """Whether this row of results does."""
        if self.of == "us":
            return bool(row["us"] <= self.limit)
        return bool(row[f"{self.of}_share"] >= self.limit)


@dataclasses.dataclass(frozen=True, slots=True)
class Measurement:
    """One line of the table."""

    name: str
    make: Callable[[Place], Work]
    bar: Bar | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Sizes:
    """Of the layers and batches that are measured."""

    heads: Heads = Heads(32, 8, 128)
    hidden: int = 4096
    width: int = 14336
    num_tokens: int = 4096
    num_rows: int = 64
    vocab_size: int = 151936
    # (sequences, keys of each), and the bar where there is one
    decode: tuple[tuple[int, int, float | None], ...] = (
        (256, 8192, 0.88), (32, 8192, 0.75), (1, 8192, None), (256, 1024, None),
    )  # fmt: skip
    prefill: tuple[tuple[int, int], ...] = ((1, 8192), (4, 2048))
    # Llama-3.1-8B: rows and columns of each weight.
    weights: tuple[tuple[str, int, int], ...] = (
        ("qkv", 6144, 4096), ("o", 4096, 4096), ("gate_up", 28672, 4096), ("down", 4096, 14336), ("head", 128256, 4096),
    )  # fmt: skip


SMOKE_SIZES = Sizes(
    heads=Heads(4, 2, 16), hidden=48, width=40, num_tokens=5, num_rows=2, vocab_size=300,
    decode=((2, 40, 0.88),), prefill=((2, 20),), weights=(("o", 40, 48),),
)  # fmt: skip


def measurements(sizes: Sizes) -> Iterator[Measurement]:
    """Every line of the table, in its order."""
    partial = functools.partial
    for dtype, suffix in ((torch.bfloat16, ""), (torch.float8_e4m3fn, ", e4m3 cache")):
        for num_seqs, length, share in sizes.decode:
            yield Measurement(
                f"decode attention {num_seqs} x {length}{suffix}",
                partial(
                    gpu_work.decode_attention, heads=sizes.heads, num_seqs=num_seqs, length=length, cache_dtype=dtype
                ),
                None if share is None or suffix else Bar("copy", share),
            )
    for num_seqs, length in sizes.prefill:
        make = partial(gpu_work.prefill_attention, heads=sizes.heads, num_seqs=num_seqs, length=length)
        yield Measurement(f"prefill attention {num_seqs} x {length}", make, Bar("matrix", 0.55))
    tokens = sizes.num_tokens
    make = partial(gpu_work.add_rms_norm, num_tokens=tokens, size=sizes.hidden)
    yield Measurement(f"add_rms_norm {tokens} x {sizes.hidden}", make, Bar("copy", 0.8))
    for has_norms, suffix in ((False, ""), (True, ", with head norms")):
        make = partial(gpu_work.rotate_and_store, heads=sizes.heads, num_tokens=tokens, has_norms=has_norms)
        yield Measurement(f"rotate and store {tokens}{suffix}", make, Bar("copy", 0.8))
    make = partial(gpu_work.silu_and_mul, num_tokens=tokens, width=sizes.width)
    yield Measurement(f"silu_and_mul {tokens} x {sizes.width}", make)
    for has_filters, has_edits, words, limit in (
        (False, False, "plain", 25.0),
        (True, False, "every filter", 120.0),
        (True, True, "every filter and edit", None),
    ):
        make = partial(
            gpu_sampling_work.sample,
            num_rows=sizes.num_rows,
            vocab_size=sizes.vocab_size,
            has_filters=has_filters,
            has_edits=has_edits,
        )
        bar = None if limit is None else Bar("us", limit)
        yield Measurement(f"sample {sizes.num_rows} x {sizes.vocab_size}, {words}", make, bar)
    make = partial(gpu_sampling_work.logprobs, num_rows=sizes.num_rows, vocab_size=sizes.vocab_size, num_top=20)
    yield Measurement(f"logprobs {sizes.num_rows} x {sizes.vocab_size}, top 20", make)
    for num_rows in (1, 16):
        for name, n, k in sizes.weights:
            make = partial(gpu_work.product, num_rows=num_rows, n=n, k=k)
            yield Measurement(f"skinny product {num_rows} rows, {name} {n} x {k}", make)


def measure(measurement: Measurement, place: Place, clock: Clock, top: Ceilings) -> dict[str, Any]:
    """One line: figures, or in `failed` why there are none. A peer that fails does so alone."""
    row: dict[str, Any] = {"name": measurement.name, "bar": str(measurement.bar) if measurement.bar else None}
    try:
        work = measurement.make(place)
        # JSON has no infinity.
        row |= {"error": min(work.error(), 1e9), "bytes": work.num_bytes, "flops": work.num_flops}
        timing = clock.time(work.ours)
    except Exception as error:  # noqa: BLE001 - whatever is wrong with one kernel, the others are measured
        return {**row, "failed": _in_short(error)}
    row |= {
        "us": timing.seconds * 1e6,
        "spread": timing.spread,
        "copy_share": work.num_bytes / timing.seconds / top.copy_bytes_s,
        "matrix_share": work.num_flops / timing.seconds / top.matrix_flops_s,
        "right": row["error"] <= MAX_ERROR,
    }
    if measurement.bar is not None:
        row["met"] = row["right"] and measurement.bar.is_met(row)
    if work.peer is not None:
        try:
            peer = clock.time(work.peer)
            row |= {
                "torch_us": peer.seconds * 1e6,
                "torch_spread": peer.spread,
                "speedup": peer.seconds / timing.seconds,
            }
        except Exception as error:  # noqa: BLE001 - see above
            row["torch_failed"] = _in_short(error)
    return row


def _in_short(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]


def gives_memory_back(place: Place) -> bool:
    """Frees what is unused. Whether the GPU still takes work of this process: not after an illegal access."""
    if place.device.type == "cuda":
        try:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
        except RuntimeError as error:
            say(_in_short(error))
            return False
    return True


def print_header(top: Ceilings) -> None:
    """For people."""
    say(f"copy {top.copy_bytes_s / 1e12:.3f} TB/s, bfloat16 product {top.matrix_flops_s / 1e12:.1f} TFLOP/s")
    say(f"{'':46}{'us':>10} {'+-':>5} {'copy':>5} {'matrix':>6} {'torch us':>10} {'times':>6}  bar")


def print_row(row: dict[str, Any]) -> None:
    """One line of the table, as soon as it is measured."""
    if "failed" in row:
        say(f"{row['name']:46}FAILED {row['failed']}")
        return
    beside = f"{row['torch_us']:10.1f} {row['speedup']:6.2f}" if "torch_us" in row else f"{'-':>10} {'-':>6}"
    verdict = "" if row["bar"] is None else f"{row['bar']} {'MET' if row['met'] else 'MISSED'}"
    wrong = "" if row["right"] else f" WRONG: error {row['error']:.1e}"
    shares = f"{row['copy_share']:5.0%} {row['matrix_share']:6.0%}"
    say(f"{row['name']:46}{row['us']:10.1f} {row['spread']:5.1%} {shares} {beside}  {verdict}{wrong}")


def prepare(args: argparse.Namespace) -> tuple[Place, Clock]:
    """Where and how to measure: on the GPU, or for --smoke in the interpreter.

    Must come before anything imports a kernel: the interpreter is chosen when one is defined.
    """
    if not args.smoke and not torch.cuda.is_available():
        say("no GPU: torch.cuda.is_available() is false (--smoke proves the script without one)")
        raise SystemExit(2)
    if args.smoke:
        os.environ["TRITON_INTERPRET"] = "1"
        from tests.kernels.gpu import interpreter

        interpreter.install()
        from kernels.gpu.hardware import KNOWN

        return Place(torch.device("cpu"), KNOWN[90], 0, args.block_size), HostClock()
    from kernels.gpu.hardware import hardware_of

    device = torch.device("cuda", torch.cuda.current_device())
    cache_bytes: int = torch.cuda.get_device_properties(device).L2_cache_size
    return Place(device, hardware_of(device), cache_bytes, args.block_size), GraphClock()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], help="words; measure what has one of them in its name")
    parser.add_argument("--block-size", type=int, default=32, help="tokens of a block of the cache (default: 32)")
    parser.add_argument("--limit-s", type=float, default=600, help="start no measurement after this (default: 600)")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes in the interpreter, no GPU")
    return parser.parse_args()


def main() -> int:
    """Measure and print; 1 if a kernel failed or was wrong, or if none was measured."""
    args = _parse()
    deadline = time.monotonic() + args.limit_s
    place, clock = prepare(args)
    torch.manual_seed(0)
    top = ceilings(place.device, clock, 2**16 if args.smoke else 2**31, 64 if args.smoke else 8192)
    print_header(top)
    rows: list[dict[str, Any]] = []
    left_out: list[str] = []
    is_broken = False
    for measurement in measurements(SMOKE_SIZES if args.smoke else Sizes()):
        if args.only and not any(word in measurement.name for word in args.only):
            continue
        if is_broken or time.monotonic() > deadline:
            left_out.append(measurement.name)
            continue
        rows.append(measure(measurement, place, clock, top))
        print_row(rows[-1])
        is_broken = not gives_memory_back(place)
    for name in left_out:
        say(f"{name:46}not measured: {'the GPU takes no more work' if is_broken else 'no time left'}")
    result = {"ceilings": dataclasses.asdict(top), "kernels": rows, "not_measured": left_out}
    finish({"benchmark": "gpu_kernels", **vars(args), "results": result, "machine": gpu_machine()})
    return 0 if rows and all(row.get("right", False) for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
