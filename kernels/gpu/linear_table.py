"""Where the skinny product beats cuBLAS, and with which blocks: measured tables, one file per GPU, and defaults.

A table is made by `benchmarks/gpu_linear.py` on the GPU that it is for, and lies in `kernels/gpu/tables`; a GPU without
one uses cuBLAS throughout. Must not know Triton or tensors.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from kernels.gpu.hardware import Hardware

TABLES = Path(__file__).parent / "tables"
M_BUCKETS = (1, 2, 4, 8, 16, 32, 64)
MAX_ROWS = M_BUCKETS[-1]


@dataclasses.dataclass(frozen=True, slots=True)
class SkinnyConfig:
    """How a skinny product is cut.

    block_n, block_k: rows and columns of the weight's tile, powers of two. split_k: into so many parts each sum is cut.
    """

    block_n: int
    block_k: int
    split_k: int
    num_stages: int
    num_warps: int

    def __post_init__(self) -> None:
        for name in ("block_n", "block_k", "num_warps"):
            value = getattr(self, name)
            if not _is_count(value) or value & (value - 1):
                raise ValueError(f"{name} is a power of two, not {value!r}")
        for name in ("split_k", "num_stages"):
            if not _is_count(getattr(self, name)):
                raise ValueError(f"{name} is a positive whole number, not {getattr(self, name)!r}")
        if self.block_n < 16 or self.block_k < 16:
            raise ValueError("block_n and block_k are at least 16: the matrix units take no less")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


# Tiles of 2-byte weights by the rows' bucket (16, 32, 64). What matters is how many bytes of weights are under way at
# once (Little's law: bandwidth x latency): 4.8 TB/s x 0.7 us / 132 = 25 KB per multiprocessor of an H200, 11 KB of an
# A100, under 6 KB of an A10G or L4. A stage holds block_n x block_k weights, and block_m x block_k of x beside them.
_Tile = tuple[int, int, int, int]  # block_n, block_k, num_stages, num_warps
_TILES: dict[int, dict[int, _Tile]] = {
    # 16 KB of weights per stage, three stages under way, two blocks per multiprocessor: 96 KB, four times what it
    # takes, because a block that starts or stores loads nothing. At 64 rows x needs as much room as the weights.
    90: {16: (64, 128, 4, 4), 32: (64, 128, 4, 4), 64: (64, 64, 4, 4)},
    80: {16: (64, 128, 3, 4), 32: (64, 128, 3, 4), 64: (64, 64, 4, 4)},
    # 99 KB of shared memory and a sixth of the bandwidth: 8 KB per stage and three blocks are enough.
    89: {16: (64, 64, 3, 4), 32: (64, 64, 3, 4), 64: (64, 64, 3, 4)},
    86: {16: (64, 64, 3, 4), 32: (64, 64, 3, 4), 64: (64, 64, 3, 4)},
}
_BLOCKS_PER_MULTIPROCESSOR = 2
# A part that is shorter than this many tiles spends its time filling the pipeline.
_MIN_TILES_PER_PART = 4
_MAX_SPLIT_K = 16


def padded_rows(num_rows: int) -> int:
    """The rows that the kernel computes for this many: 16, 32 or 64, the few forms that are compiled."""
    return 16 if num_rows <= 16 else 32 if num_rows <= 32 else 64


def default_config(num_rows: int, n: int, k: int, hardware: Hardware) -> SkinnyConfig:
    """A configuration by reasoning alone: tiles of the architecture, and sums cut until every multiprocessor works."""
    # Later architectures have at least Hopper's shared memory or, on small GPUs, Ada's.
    known = hardware.capability if hardware.capability in _TILES else (90 if hardware.capability == 100 else 89)
    block_n, block_k, num_stages, num_warps = _TILES[known][padded_rows(num_rows)]
    num_blocks = -(-n // block_n)
    split_k = 1
    while (
        num_blocks * split_k < _BLOCKS_PER_MULTIPROCESSOR * hardware.num_multiprocessors
        and 2 * split_k <= _MAX_SPLIT_K
        and k >= 2 * split_k * _MIN_TILES_PER_PART * block_k
    ):
        split_k *= 2
    return SkinnyConfig(block_n, block_k, split_k, num_stages, num_warps)


def slug(gpu_name: str) -> str:
    """The file name of a GPU's table, without its suffix: `nvidia-h200`."""
    return re.sub(r"[^a-z0-9]+", "-", gpu_name.lower()).strip("-")


def bucket_of(num_rows: int) -> int:
    """Which of `M_BUCKETS` holds this many rows: the least that is not smaller."""
    return next(bucket for bucket in M_BUCKETS if bucket >= num_rows)


@dataclasses.dataclass(frozen=True, slots=True)
class LinearTable:
    """(n, k, rows' bucket) to the configuration that was measured to beat cuBLAS there; where none is, cuBLAS."""

    entries: Mapping[tuple[int, int, int], SkinnyConfig]

    @classmethod
    def for_hardware(cls, hardware: Hardware, folder: Path = TABLES) -> Self:
        """The table of this GPU; empty if nobody measured it. Raises as `for_file` does."""
        path = folder / f"{slug(hardware.name)}.json"
        return cls.for_file(path) if path.exists() else cls({})

    @classmethod
    def for_file(cls, path: Path) -> Self:
        """What a file holds; ValueError, naming the file, if that is not such a table."""
        try:
            content = json.loads(path.read_text())
            return cls(dict(_entry(row) for row in content["entries"]))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path} is not a table of linear layers: {type(error).__name__}: {error}") from error

    def configs(self, n: int, k: int) -> dict[int, SkinnyConfig]:
        """What is known of a weight [n, k], by bucket."""
        return {m: config for (rows, columns, m), config in self.entries.items() if (rows, columns) == (n, k)}


def _entry(row: dict[str, Any]) -> tuple[tuple[int, int, int], SkinnyConfig]:
    n, k, bucket = row["n"], row["k"], row["m_bucket"]
    if not (_is_count(n) and _is_count(k)):
        raise ValueError(f"n and k are positive whole numbers, not {n!r} and {k!r}")
    if bucket not in M_BUCKETS:
        raise ValueError(f"m_bucket is one of {M_BUCKETS}, not {bucket!r}")
    return (n, k, bucket), SkinnyConfig(**row["config"])
