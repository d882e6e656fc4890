"""How fast do weights come from local files to where they are computed with?

    python benchmarks/loading.py                                   # 2 GB in two files, on the CPU
    python benchmarks/loading.py --device cuda --size-gb 15 --threads 8
    python benchmarks/loading.py --cold                            # files out of the page cache before each turn

Random weights of a decoder are written to --directory once. Then take turns, medians of --repeats:

- `read`: --threads threads read all bytes into buffers of their own, over and over: what the files can give.
- `read_kept`: the same into fresh memory for all bytes, which is what keeping them in ordinary memory costs at least.
- `streamed`: `StreamedWeights` from opening the files to the last weight in its joined product on --device.
- `load_file`: `safetensors.torch.load_file` to --device; on a CPU, where it only maps, with a copy of each tensor.

- `staged`, on a CPU only: as `streamed`, to a device that copies at once and at no cost. That is the host's half of a
  load: a GPU's own engine copies beside it.

The bar: `streamed` reaches at least 60% of `read`. The engine streams to GPUs only. On a CPU every byte is copied once
more, into memory whose pages are new: there `read_kept` is the measure for `streamed`, and `read` that for `staged`.
"""

import argparse
import concurrent.futures
import importlib.metadata
import json
import os
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that the script runs from a checkout that is not installed

from benchmarks.common import finish, machine, say, timed
from benchmarks.gpu_timing import gpu_machine
from engine.loading.chunks import ReadOptions
from engine.loading.streamed import StreamedWeights, StreamOptions
from engine.loading.uploader import PlainUploader, StagingBuffer

_BAR = 0.6
_NOTE = "loading_benchmark.json"


class Checkpoint:
    """Bfloat16 layers of a decoder in the proportions of Llama-3.1-8B, `layers_per_file` to a file."""

    def __init__(self, directory: Path, size_gb: float, hidden_size: int, num_files: int) -> None:
        self.directory = directory
        self.hidden = hidden_size
        self.key_value, self.inner = max(1, hidden_size // 4), hidden_size * 7 // 2
        layer_bytes = 2 * hidden_size * (2 * hidden_size + 2 * self.key_value + 3 * self.inner + 2)
        self.num_layers = max(1, round(size_gb * 1e9 / layer_bytes))
        self.num_bytes = self.num_layers * layer_bytes
        self.layers_per_file = -(-self.num_layers // num_files)

    @property
    def paths(self) -> list[Path]:
        """The files, in order."""
        num_files = -(-self.num_layers // self.layers_per_file)
        return [self.directory / f"model-{i + 1:05}-of-{num_files:05}.safetensors" for i in range(num_files)]

    def write(self) -> None:
        """Write the files, unless the directory has them already."""
        recipe = [self.hidden, self.num_layers, self.layers_per_file]
        note = self.directory / _NOTE
        if note.exists() and json.loads(note.read_text()) == recipe:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        note.unlink(missing_ok=True)
        say(f"writing {self.num_bytes / 1e9:.2f} GB to {self.directory}")
        weight_map: dict[str, str] = {}
        for index, path in enumerate(self.paths):
            first = index * self.layers_per_file
            layers = range(first, min(first + self.layers_per_file, self.num_layers))
            tensors = {name: _random(shape) for layer in layers for name, shape in self._layer(layer)}
            save_file(tensors, path, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(tensors, path.name)
        (self.directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        note.write_text(json.dumps(recipe))  # last: an interrupted run leaves none

    def take_all(self, weights: StreamedWeights) -> list[Tensor]:
        """Ask for every weight as the layers do."""
        kept: list[Tensor] = []
        for layer in range(self.num_layers):
            shapes = dict(self._layer(layer))
            joined = [name for name, shape in shapes.items() if len(shape) == 2]
            for group in (joined[:3], joined[3:4], joined[4:6], joined[6:]):  # qkv, output, gate and up, down
                kept += weights.parts([(name, shapes[name][0]) for name in group], shapes[group[0]][1])
            kept += [weights.keep(name, shape) for name, shape in shapes.items() if len(shape) == 1]
        return kept

    def _layer(self, index: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        prefix, hidden = f"model.layers.{index}.", self.hidden
        rows = {"self_attn.q_proj": hidden, "self_attn.k_proj": self.key_value, "self_attn.v_proj": self.key_value}
        rows |= {"self_attn.o_proj": hidden, "mlp.gate_proj": self.inner, "mlp.up_proj": self.inner}
        yield from ((f"{prefix}{name}.weight", (size, hidden)) for name, size in rows.items())
        yield f"{prefix}mlp.down_proj.weight", (hidden, self.inner)
        yield f"{prefix}input_layernorm.weight", (hidden,)
        yield f"{prefix}post_attention_layernorm.weight", (hidden,)


def _random(shape: tuple[int, ...]) -> Tensor:
    # Random bits: quick to make, and nothing that a file system could compress.
    return torch.empty(shape, dtype=torch.int16).random_(-(2**15), 2**15).view(torch.bfloat16)


def read_all(paths: list[Path], num_threads: int, *, keep: bool) -> None:
    """Read the files with `num_threads` threads, into a buffer for each, or `keep` into memory for all."""
    chunk_bytes = ReadOptions().chunk_bytes
    sizes = [path.stat().st_size for path in paths]
    jobs = [(index, first) for index, size in enumerate(sizes) for first in range(0, size, chunk_bytes)]
    descriptors = [os.open(path, os.O_RDONLY) for path in paths]
    memories = [_memory(size) for size in sizes] if keep else []

    def work(number: int) -> None:
        own = _memory(chunk_bytes)
        for index, first in jobs[number::num_threads]:
            size = min(chunk_bytes, sizes[index] - first)
            into, done = memories[index][first : first + size] if keep else own[:size], 0
            while done < size:
                done += os.preadv(descriptors[index], [into[done:]], first + done)

    try:
        with concurrent.futures.ThreadPoolExecutor(num_threads) as pool:
            list(pool.map(work, range(num_threads)))
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _memory(num_bytes: int) -> memoryview:
    """Ordinary memory, whose pages come when they are first written."""
    return torch.empty(num_bytes, dtype=torch.uint8).numpy().data


class NoCopies(PlainUploader):
    """To a device that copies at once and at no cost."""

    def upload(self, buffer: StagingBuffer, copy: Callable[[], None]) -> None:
        """Leave the bytes where they are."""


def stream(checkpoint: Checkpoint, device: torch.device, options: StreamOptions) -> None:
    """What a start of the engine does with the files."""
    with StreamedWeights(checkpoint.directory, torch.bfloat16, device, options) as weights:
        kept = checkpoint.take_all(weights)
        statistics_ = weights.finish()
    assert sum(tensor.nbytes for tensor in kept) == statistics_.num_bytes == checkpoint.num_bytes


def load_files(paths: list[Path], device: torch.device) -> None:
    """safetensors' own way."""
    kept: list[Tensor] = []
    for path in paths:
        tensors = load_file(path, device=str(device)).values()
        kept += [tensor.clone() for tensor in tensors] if device.type == "cpu" else tensors
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def evict(paths: list[Path]) -> None:
    """Ask the system to forget the files' pages, which it can once they are on the disk."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def median_rates(
    candidates: dict[str, Callable[[], object]], num_bytes: int, repeats: int, before: Callable[[], object]
) -> dict[str, float]:
    """Median GB/s of each candidate after one warm-up; they take turns, and `before` is not timed."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(repeats + 1):
        for name, function in candidates.items():
            before()
            taken = timed(function)
            if turn:
                seconds[name].append(taken)
    return {name: round(num_bytes / statistics.median(values) / 1e9, 3) for name, values in seconds.items()}


def main() -> None:
    """Measure and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", default="/tmp/galley-loading", help="where the files are, or are written")
    parser.add_argument("--size-gb", type=float, default=2.0)
    parser.add_argument("--num-files", type=int, default=2)
    parser.add_argument("--hidden-size", type=int, default=4096, help="of the decoder whose layers are stored")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda")
    parser.add_argument("--threads", type=int, default=ReadOptions().threads())
    parser.add_argument("--cold", action="store_true", help="measure with files out of the page cache, too")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    device = torch.device(args.device)
    checkpoint = Checkpoint(Path(args.directory), args.size_gb, args.hidden_size, args.num_files)
    checkpoint.write()
    paths = checkpoint.paths
    read = ReadOptions(num_threads=args.threads)
    candidates: dict[str, Callable[[], object]] = {
        "read": lambda: read_all(paths, args.threads, keep=False),
        "read_kept": lambda: read_all(paths, args.threads, keep=True),
        "streamed": lambda: stream(checkpoint, device, StreamOptions(read)),
        "load_file": lambda: load_files(paths, device),
    }
    if device.type == "cpu":
        candidates["staged"] = lambda: stream(checkpoint, device, StreamOptions(read, NoCopies()))
    results: dict[str, Any] = {"gb": round(checkpoint.num_bytes / 1e9, 3), "num_files": len(paths), "bar": _BAR}
    for cache in ("warm", *(("cold",) if args.cold else ())):
        before = (lambda: evict(paths)) if cache == "cold" else (lambda: None)
        rates = median_rates(candidates, checkpoint.num_bytes, args.repeats, before)
        pairs = [("streamed", "read"), ("streamed", "read_kept"), ("staged", "read")]
        shares = {f"{a}_of_{b}": round(rates[a] / rates[b], 3) for a, b in pairs if a in rates}
        results[cache] = {"gb_per_s": rates, **shares}
        for name, rate in rates.items():
            say(f"{cache:5} {name:10} {rate:8.2f} GB/s, {rate / rates['read']:6.1%} of `read`")
    place = gpu_machine() if device.type == "cuda" else machine()
    place["safetensors"] = importlib.metadata.version("safetensors")
    finish({"benchmark": "loading", **vars(args), "results": results, "machine": place})


if __name__ == "__main__":
    main()
