"""The CPU's compiled kernels: C sources in `kernels/cpu/native`, compiled for this machine on first use, then cached.

-march=native is what makes them fast, so they are compiled where they run, as Triton's are. A second process finds the
library under the hash of sources, compiler and CPU. Where there is no C compiler `load` says so and returns None; the
eager forms then serve, slowly. Must not know tensors' meaning: it hands out functions.
"""

import ctypes
import functools
import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_SOURCES = Path(__file__).parent / "native"
_FLAGS = ("-O3", "-march=native", "-std=gnu11", "-pthread", "-shared", "-fPIC", "-fvisibility=hidden", "-w")
_COMPILE_TIMEOUT_S = 120.0
_log = logging.getLogger(__name__)

_POINTER, _INT, _SIZE, _FLOAT = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t, ctypes.c_float


class Weights(ctypes.Structure):
    """`Weights` of gemm.c."""

    _fields_ = (
        ("kind", _INT),
        ("num_columns", _INT),
        ("num_steps", _INT),
        ("group_steps", _INT),
        ("panel_bytes", _SIZE),
        ("panels", _POINTER),
        ("scales", _POINTER),
        ("offsets", _POINTER),
        ("bias", _POINTER),
    )


class Heads(ctypes.Structure):
    """`Heads` of elementwise.c."""

    _fields_ = (
        ("num_heads", _INT),
        ("num_kv_heads", _INT),
        ("head_dim", _INT),
        ("padded_dim", _INT),
        ("block_size", _INT),
        ("eps", _FLOAT),
        ("query_norm", _POINTER),
        ("key_norm", _POINTER),
    )


class Attention(ctypes.Structure):
    """`Attention` of attention.c."""

    _fields_ = (
        ("num_heads", _INT),
        ("num_kv_heads", _INT),
        ("head_dim", _INT),
        ("padded_dim", _INT),
        ("block_size", _INT),
        ("num_tokens", _INT),
        ("num_seqs", _INT),
        ("max_blocks", _INT),
        ("query_stride", _SIZE),
        ("scale", _FLOAT),
        ("query", _POINTER),
        ("keys", _POINTER),
        ("values", _POINTER),
        ("starts", _POINTER),
        ("seq_lens", _POINTER),
        ("tables", _POINTER),
        ("out", _POINTER),
    )


class Sampling(ctypes.Structure):
    """`Sampling` of sample.c."""

    _fields_ = (
        ("is_bf16", _INT),
        ("vocab_size", _INT),
        ("logits", _POINTER),
        ("row_bytes", _SIZE),
        ("temperature", _POINTER),
        ("top_p", _POINTER),
        ("min_p", _POINTER),
        ("top_k", _POINTER),
        ("k1", _POINTER),
        ("k2", _POINTER),
        ("tokens", _POINTER),
        *((name, _POINTER) for name in ("bitmask", "mask_row", "bias_start", "bias_ids", "bias_values")),
        *((name, _POINTER) for name in ("counts", "count_slot", "repetition", "frequency", "presence")),
    )


class ExpandedStep(ctypes.Structure):
    """`Step` of step.c."""

    _fields_ = (
        ("num_seqs", _INT),
        ("block_size", _INT),
        ("max_blocks", _INT),
        ("row_blocks", _INT),
        ("out_blocks", _INT),
        *((name, _POINTER) for name in ("rows", "starts", "seq_lens", "places", "token_ids")),
        *((name, _POINTER) for name in ("block_table", "last_tokens", "sampling")),
        *((name, _POINTER) for name in ("input_ids", "positions", "slots", "out_table", "logits_indices")),
        *((name, _POINTER) for name in ("sample_rows", "temperature", "top_k", "top_p", "min_p", "seeds")),
        *((name, _POINTER) for name in ("sample_positions", "mask_row", "count_slot")),
        *((name, _POINTER) for name in ("repetition", "frequency", "presence")),
    )


_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "pack_rows": (_POINTER, _SIZE, _INT, _INT, _POINTER, _INT),
    "prefer_huge_pages": (_POINTER, _SIZE),
    "linear": (_POINTER, _POINTER, _SIZE, _POINTER, _POINTER, _INT),
    "quantize_rows": (_POINTER, _POINTER, _POINTER, _INT, _INT),
    "rms_norm": (_INT, _POINTER, _POINTER, _POINTER, _POINTER, _INT, _INT, _FLOAT),
    "silu_and_mul": (_INT, _POINTER, _POINTER, _INT, _INT),
    "rotate_and_store": (_INT, _POINTER, _POINTER, _POINTER, _POINTER, _POINTER, _POINTER, _POINTER, _INT),
    "sample": (_POINTER, _INT),
    "gumbel_noise": (ctypes.c_uint32, ctypes.c_uint32, _INT, _POINTER),
    "expand_step": (_POINTER,),
    "paged_attention": (_INT, _POINTER, _POINTER, _INT, _INT),
}


class Native:
    """The library's functions. Pointers are tensors' `data_ptr()`; the caller keeps the tensors alive."""

    def __init__(self, library: ctypes.CDLL) -> None:
        for name, arguments in _SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, None
        self.pack_rows: Callable[..., None] = library.pack_rows
        self.prefer_huge_pages: Callable[..., None] = library.prefer_huge_pages
        self.linear: Callable[..., None] = library.linear
        self.quantize_rows: Callable[..., None] = library.quantize_rows
        self.rms_norm: Callable[..., None] = library.rms_norm
        self.silu_and_mul: Callable[..., None] = library.silu_and_mul
        self.rotate_and_store: Callable[..., None] = library.rotate_and_store
        self.sample: Callable[..., None] = library.sample
        self.gumbel_noise: Callable[..., None] = library.gumbel_noise
        self.expand_step: Callable[..., None] = library.expand_step
        self.paged_attention: Callable[..., None] = library.paged_attention
        self.set_num_threads: Callable[[int], None] = library.set_num_threads
        self.max_tile_rows: int = library.max_tile_rows()
        self.has_quantized: bool = bool(library.has_quantized())


@functools.cache
def load() -> Native | None:
    """The compiled kernels; None, with one line in the log, where they cannot be compiled."""
    try:
        directory = _cache_dir()
        if directory is not None:
            return Native(ctypes.CDLL(str(_library(directory))))
        with tempfile.TemporaryDirectory(prefix="galley-kernels-") as own:
            return Native(ctypes.CDLL(str(_library(Path(own)))))
    except (OSError, subprocess.SubprocessError) as error:
        detail = getattr(error, "stderr", None) or error
        _log.warning("the CPU kernels cannot be compiled, serving slowly without them: %s", str(detail).strip()[-500:])
        return None


def _library(directory: Path) -> Path:
    """The shared library for this machine, compiled if it is not there. Raises OSError, SubprocessError."""
    sources = sorted(_SOURCES.glob("*.[ch]"))
    key = hashlib.sha256()
    for part in (*(path.read_bytes() for path in sources), " ".join(_FLAGS).encode(), _cpu()):
        key.update(len(part).to_bytes(8, "big") + part)
    library = directory / f"kernels-{key.hexdigest()[:32]}.so"
    if library.exists():
        return library
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise FileNotFoundError("there is no C compiler (cc) on the PATH")
    # Under a name of its own first: another process may compile at the same time, and rename replaces atomically.
    with tempfile.TemporaryDirectory(dir=directory) as scratch:
        made = Path(scratch) / library.name
        inputs = [str(path) for path in sources if path.suffix == ".c"]
        subprocess.run(
            [compiler, *_FLAGS, *inputs, "-lm", "-o", str(made)],
            check=True,
            capture_output=True,
            text=True,
            timeout=_COMPILE_TIMEOUT_S,
        )
        made.replace(library)
    return library


def _cpu() -> bytes:
    """What -march=native depends on. A home directory may be shared by machines."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    kept = [line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))]
    return "\n".join([torch.backends.cpu.get_cpu_capability(), *sorted(set(kept))]).encode()


def _cache_dir() -> Path | None:
    """A directory that only this user can write, for what lies there is run; None where there is none."""
    try:
        directory = Path.home() / ".cache" / "galley"
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for one in (directory, directory.parent):
            status = one.stat()
            if status.st_uid != os.getuid() or status.st_mode & 0o022:
                return None
        return directory if os.access(directory, os.W_OK) else None
    except (OSError, RuntimeError):  # no home, or one that is not writable
        return None
