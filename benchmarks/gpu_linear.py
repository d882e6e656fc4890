"""Where does the skinny product beat cuBLAS on this GPU? Writes the table that `kernels.gpu.linear.Linear` reads.

    python benchmarks/gpu_linear.py                           # into kernels/gpu/tables, for this GPU
    python benchmarks/gpu_linear.py --models llama-3.1-8b --limit-s 300 --output table.json
    python benchmarks/gpu_linear.py --smoke --output table.json   # proves the script without a GPU

For each weight of the models and each number of rows, cuBLAS and a handful of configurations run as CUDA graph replays
that rotate among copies of the weight, so that the L2 does not hold one. The best configuration and cuBLAS are then
measured once more, and an entry is written only where ours was faster by more than 5 % both times. With --limit-s the
rest of the weights keep the entries that the table had, if any.
"""

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that the script runs from a checkout that is not installed

from benchmarks.common import finish, say
from benchmarks.gpu_kernels import MAX_ERROR, prepare
from benchmarks.gpu_timing import Clock, gpu_machine
from benchmarks.gpu_work import Place, product
from kernels.gpu.linear_table import M_BUCKETS, TABLES, LinearTable, SkinnyConfig, default_config, padded_rows, slug

MIN_SPEEDUP = 1.05
# Rows and columns of the weights: the fused query, key and value projection, output, gate and up, down, and the head.
MODELS: dict[str, tuple[tuple[int, int], ...]] = {
    "qwen3-0.6b": ((4096, 1024), (1024, 2048), (6144, 1024), (1024, 3072), (151936, 1024)),
    "llama-3.1-8b": ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (128256, 4096)),
    "qwen3-14b": ((7168, 5120), (5120, 5120), (34816, 5120), (5120, 17408), (151936, 5120)),
}
SMOKE_MODELS = {"tiny": ((40, 256),)}


def candidates(num_rows: int, n: int, k: int, place: Place) -> Iterator[SkinnyConfig]:
    """The default, its neighbours in how far the sums are split, and the same with other tiles; each once."""
    usual = default_config(num_rows, n, k, place.hardware)
    tiles = [(usual.block_n, usual.block_k, usual.num_stages), (64, 256, 3), (128, 128, 3), (128, 64, 4), (32, 128, 4)]
    splits = sorted({max(1, usual.split_k // 2), usual.split_k, usual.split_k * 2})
    seen = set()
    for (block_n, block_k, num_stages), split_k in itertools.product(tiles, splits):
        config = SkinnyConfig(block_n, block_k, split_k, num_stages, usual.num_warps)
        # Weights and x in 2-byte numbers, and a little for the compiler.
        needed = num_stages * 2 * block_k * (block_n + padded_rows(num_rows)) + 2048
        is_sensible = needed <= place.hardware.shared_memory_bytes and block_k * split_k <= k
        if is_sensible and config not in seen:
            seen.add(config)
            yield config


def best_entry(num_rows: int, n: int, k: int, place: Place, clock: Clock) -> tuple[dict[str, Any] | None, str]:
    """(the table's entry or None, a line for people) of one weight and number of rows."""
    times: dict[SkinnyConfig, float] = {}
    for config in candidates(num_rows, n, k, place):
        work = product(place, num_rows, n, k, config)
        if not times:
            theirs = clock.time(work.peer or []).seconds
        if work.error() > MAX_ERROR:
            raise RuntimeError(f"a product of {num_rows} x {k} and {n} x {k} is wrong with {config}")
        times[config] = clock.time(work.ours).seconds
    best = min(times, key=lambda config: times[config])
    work = product(place, num_rows, n, k, best)
    again = clock.time(work.peer or []).seconds / clock.time(work.ours).seconds
    speedup = min(theirs / times[best], again)
    text = f"cuBLAS {theirs * 1e6:.1f} us, ours {times[best] * 1e6:.1f} us, {speedup:.2f} times as fast at least"
    if speedup <= MIN_SPEEDUP:
        return None, text
    config_fields = {name: getattr(best, name) for name in SkinnyConfig.__dataclass_fields__}
    entry = {"n": n, "k": k, "m_bucket": num_rows, "config": config_fields, "speedup": round(speedup, 3)}
    return entry, f"{text}, with {best}"


def merged(path: Path, measured: set[tuple[int, int, int]], entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The new entries, and those of the old table that were not measured again."""
    old = json.loads(path.read_text())["entries"] if path.exists() else []
    kept = [entry for entry in old if (entry["n"], entry["k"], entry["m_bucket"]) not in measured]
    return sorted([*kept, *entries], key=lambda entry: (entry["n"], entry["k"], entry["m_bucket"]))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=sorted(MODELS), default=sorted(MODELS))
    parser.add_argument("--rows", type=int, nargs="+", choices=M_BUCKETS, default=list(M_BUCKETS))
    parser.add_argument("--output", type=Path, help="default: the GPU's file in kernels/gpu/tables")
    parser.add_argument("--limit-s", type=float, default=3600, help="start no measurement after this (default: 3600)")
    parser.add_argument("--smoke", action="store_true", help="one tiny weight in the interpreter, no GPU")
    parser.set_defaults(block_size=16)
    return parser.parse_args()


def main() -> int:
    """Measure, and write the table."""
    args = _parse()
    deadline = time.monotonic() + args.limit_s
    place, clock = prepare(args)
    if args.smoke and args.output is None:
        say("--smoke measures nothing: name an --output, so that no table is made of it")
        return 2
    models = SMOKE_MODELS if args.smoke else {name: MODELS[name] for name in args.models}
    path = args.output or TABLES / f"{slug(place.hardware.name)}.json"
    if path.exists():
        LinearTable.for_file(path)  # what it will be merged with can be read: now, not after the measuring
    torch.manual_seed(0)
    entries, measured = [], set()
    shapes = dict.fromkeys(shape for weights in models.values() for shape in weights)
    for (n, k), num_rows in itertools.product(shapes, args.rows):
        if time.monotonic() > deadline:
            break
        entry, text = best_entry(num_rows, n, k, place, clock)
        say(f"{num_rows:3} rows, {n} x {k}: {text}")
        measured.add((n, k, num_rows))
        entries += [entry] if entry else []
        if place.device.type == "cuda":
            torch.cuda.empty_cache()
    machine = gpu_machine()
    table = {"versions": machine["versions"], "date": machine["date"], "entries": merged(path, measured, entries)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(table, indent=1) + "\n")
    LinearTable.for_file(path)  # what was written can be read
    results = {"path": str(path), "num_measured": len(measured), "num_all": len(shapes) * len(args.rows)}
    arguments = {**vars(args), "output": str(path)}
    finish({"benchmark": "gpu_linear", **arguments, "results": {**results, "entries": entries}, "machine": machine})
    return 0


if __name__ == "__main__":
    sys.exit(main())
