"""How much of the work of `prefill_attention` one program does, by GPU, head size and types. Must not know kernels."""

import dataclasses

from kernels.gpu.hardware import Hardware


@dataclasses.dataclass(frozen=True, slots=True)
class Tiling:
    """rows: query tokens times heads of a tile. keys: of one step of the loop. num_warps, num_stages: the compiler's.

    Of num_stages n, a K and a V tile have n - 1 buffers each: one stage holds the block ids, which are loaded ahead.
    """

    rows: int
    keys: int
    num_warps: int
    num_stages: int


def tiling_for(hardware: Hardware, head_dim: int, query_bytes: int, cache_bytes: int) -> Tiling:
    if query_bytes == 4:
        return Tiling(32, 32, 4, 2)
    return Tiling(128, 64 if head_dim == 256 else 128, 8, 3)
