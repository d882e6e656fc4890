"""How many bytes per second do all threads together read from this machine's memory?

    python benchmarks/bandwidth.py

A decoded token reads every weight once, so this is the ceiling of the speed at batch 1. Several reductions run over a
tensor that is far larger than any cache, and the best of all their passes counts: noise only ever makes one slower. On
an EPYC 9004 the best of them read as fast as a loop of AVX-512 loads in C.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that the script runs from a checkout that is not installed

from benchmarks.common import finish, machine, say, timed

_NUM_BYTES = 2 * 2**30


def read_bandwidth(num_bytes: int = _NUM_BYTES, repeats: int = 8) -> dict[str, float]:
    """Bytes per second of each method, the best of `repeats` passes over `num_bytes` that torch's threads share."""
    floats = torch.ones(num_bytes // 4)  # ones: pages that were never written need not be read
    integers = floats.view(torch.int64)
    methods: dict[str, Callable[[], object]] = {
        "amax_float32": floats.amax,
        "sum_float32": floats.sum,
        "sum_int64": integers.sum,
    }
    return {
        name: num_bytes / min(timed(function) for _ in range(repeats + 1))  # one more, to warm up
        for name, function in methods.items()
    }


def main() -> None:
    """Measure and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=8)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    methods = read_bandwidth(repeats=args.repeats)
    for name, value in methods.items():
        say(f"{name:16} {value / 1e9:.1f} GB/s")
    result = {"bytes_s": max(methods.values()), "methods": methods}
    finish({"benchmark": "bandwidth", **vars(args), "results": result, "machine": machine()})


if __name__ == "__main__":
    main()
