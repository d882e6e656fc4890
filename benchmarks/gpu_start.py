"""How long does a cold start on the GPU take, from local files to the first token, and on what is it spent?

    python benchmarks/gpu_start.py                                # writes 16 GB of random weights of the 8B shape first
    python benchmarks/gpu_start.py --folder /big/disk
    python benchmarks/gpu_start.py --smoke                        # proves the script, on the CPU

Each start is a fresh process, timed from the moment that it is launched: with an empty Triton cache and files that are
not in the page cache, with a filled one, and with the files in the page cache too. The yardstick beside the weights'
time is a parallel read of the same files into memory, just before, in the same state of the page cache.
"""

import argparse
import functools
import logging
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that the script runs from a checkout that is not installed

from benchmarks.gpu_models import SHAPES, make_model_dir, write_checkpoint
from benchmarks.gpu_rows import Row, Rows, add_common_arguments, bar, environment, needs_gpu, run_child

_NUM_SHARDS = 4
_PIECE_BYTES = 16 * 2**20
_MAX_OTHER_S, _MIN_READ_SHARE = 8.0, 0.6
_MOST_S = 150.0  # of one start
_SECONDS = re.compile(r"(\d+(?:\.\d+)?) ?s\b")


def forget(paths: list[Path]) -> None:
    """Ask the system to drop these files from the page cache; it does so where they have been written out."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_seconds(paths: list[Path], num_threads: int = 16) -> float:
    """Seconds of reading all files at once into memory that is there already, in pieces, by many threads."""
    pieces = [(path, offset) for path in paths for offset in range(0, path.stat().st_size, _PIECE_BYTES)]
    local = threading.local()

    def make_buffer() -> None:
        local.buffer = bytearray(b"\1") * _PIECE_BYTES  # written, so that its pages are there

    def read(path: Path, offset: int) -> int:
        with path.open("rb", buffering=0) as file:
            return os.preadv(file.fileno(), [local.buffer], offset)

    started = time.perf_counter()
    with ThreadPoolExecutor(num_threads, initializer=make_buffer) as pool:
        num_bytes = sum(pool.map(read, *zip(*pieces, strict=True)))
    if num_bytes != sum(path.stat().st_size for path in paths):
        raise OSError(f"{num_bytes} bytes were read")
    return time.perf_counter() - started


class StageLog(logging.Handler):
    """What the engine logs about its start, with the seconds since the process was launched."""

    def __init__(self, launched: float) -> None:
        super().__init__(logging.INFO)
        self.lines: list[tuple[float, str]] = []
        self._launched = launched

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one line."""
        self.lines.append((round(time.monotonic() - self._launched, 3), record.getMessage()))


def weights_s(lines: list[tuple[float, str]]) -> float | None:
    """Seconds that the weights took: as a line about them says, or from the first such line to the next of another."""
    about = [(i, text) for i, (_, text) in enumerate(lines) if "weights" in text]
    told = [float(match) for _, text in about for match in _SECONDS.findall(text)]
    if told:
        return max(told)
    if not about:
        return None
    first = about[0][0]
    after = [at for at, text in lines[first:] if "weights" not in text]
    return after[0] - lines[first][0] if after else None


def child_start(args: argparse.Namespace) -> int:
    """One start, in this process: prints a row when the first token is there."""
    log = StageLog(args.launched)
    logging.basicConfig(level="INFO", stream=sys.stderr, format="  %(asctime)s %(name)s: %(message)s")
    logging.getLogger("engine").addHandler(log)
    from benchmarks.gpu_engine import settings_for
    from engine import LLM, SamplingParams

    shape = SHAPES[args.shape]
    settings = settings_for(shape, smoke=args.smoke, load_format="auto")
    imported_s = time.monotonic() - args.launched
    llm = LLM(str(args.folder), **settings)
    loaded_s = time.monotonic() - args.launched
    params = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)
    llm.generate({"prompt_token_ids": list(range(20, 60))}, params, use_tqdm=False)
    first_token_s = time.monotonic() - args.launched
    Rows("gpu_start", args).add(
        {
            "first_token_s": first_token_s, "imported_s": imported_s, "loaded_s": loaded_s,
            "weights_s": weights_s(log.lines), "stages": log.lines,
        }
    )  # fmt: skip
    return 0


def child_write(args: argparse.Namespace) -> int:
    """Write the checkpoint, in a process whose end gives the GPU's memory back."""
    import torch

    shape = SHAPES[args.shape]
    started = time.perf_counter()
    make_model_dir(shape, args.folder)
    device = torch.device("cpu" if args.smoke else "cuda")
    paths = write_checkpoint(shape, args.folder, device, _NUM_SHARDS)
    num_bytes = sum(path.stat().st_size for path in paths)
    os.sync()
    Rows("gpu_start", args).add({"name": "checkpoint", "bytes": num_bytes, "seconds": time.perf_counter() - started})
    return 0


def measure(name: str, folder: Path, triton_cache: Path, *, is_cold: bool, args: argparse.Namespace) -> list[Row]:
    """The yardstick, and one start in the same state of the page cache."""
    paths = sorted(folder.glob("*.safetensors"))
    num_bytes = sum(path.stat().st_size for path in paths)
    if is_cold:
        forget(paths)
    read_s = read_seconds(paths)
    if is_cold:
        forget(paths)
    command = [__file__, "--child", "start", "--shape", args.shape, "--folder", str(folder)]
    command += [f"--launched={time.monotonic()}", *(["--smoke"] if args.smoke else [])]
    rows, error = run_child(command, _MOST_S, env=environment(TRITON_CACHE_DIR=str(triton_cache)))
    if not rows:
        raise RuntimeError(error or "it printed nothing")
    row: Row = {"name": f"start, {name}", "read_s": read_s, "read_gb_s": num_bytes / read_s / 1e9, **rows[0]}
    result = [row]
    if row["weights_s"] is not None:
        seconds = max(1e-3, row["weights_s"])  # of a tiny model the log says 0.00
        row["weights_gb_s"] = num_bytes / seconds / 1e9
        share = read_s / seconds
        other = row["first_token_s"] - seconds
        result.append(
            {"name": f"weights, {name}", "share_of_read": share, **bar(share, _MIN_READ_SHARE, at_least=True)}
        )
        result.append({"name": f"all but weights, {name}", "seconds": other})
        if "empty" not in name:
            result[-1] |= bar(other, _MAX_OTHER_S)
    return result


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="llama-3.1-8b")
    parser.add_argument(
        "--folder", type=Path, help="where the checkpoint goes, in a folder of its own; a temporary one"
    )
    parser.add_argument("--child", choices=["start", "write"], help=argparse.SUPPRESS)
    parser.add_argument("--launched", type=float, help=argparse.SUPPRESS)
    add_common_arguments(parser, 300)
    args = parser.parse_args()
    if args.smoke:
        args.shape = "smoke"
    return args


def _write(rows: Rows, folder: Path, args: argparse.Namespace) -> bool:
    """Whether the checkpoint is there."""
    needed, free = 1.2 * SHAPES[args.shape].checkpoint_bytes, shutil.disk_usage(folder).free
    if free < needed:
        rows.add(
            {"name": "checkpoint", "not_measured": f"{free / 1e9:.0f} GB free in {folder}, {needed / 1e9:.0f} needed"}
        )
        return False
    command = [__file__, "--child", "write", "--shape", args.shape, "--folder", str(folder)]
    return bool(rows.run("checkpoint", 1.0, [*command, *(["--smoke"] if args.smoke else [])], rows.left_s))


def main() -> int:
    """Write, then start three times."""
    args = _parse()
    if args.child:
        return {"start": child_start, "write": child_write}[args.child](args)
    needs_gpu(smoke=args.smoke)
    rows = Rows("gpu_start", args)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        model, cache = Path(name) / "model", Path(name) / "triton"
        model.mkdir()
        if _write(rows, model, args):
            for label, is_cold in (
                ("empty Triton cache, cold files", True), ("filled Triton cache, cold files", True),
                ("filled Triton cache, cached files", False),
            ):  # fmt: skip
                one = functools.partial(measure, label, model, cache, is_cold=is_cold, args=args)
                rows.attempt(f"start, {label}", 2.0 if args.smoke else 30.0, one)
    return rows.finish()


if __name__ == "__main__":
    sys.exit(main())
