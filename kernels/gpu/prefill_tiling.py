"""How much of the work of `prefill_attention` one program does, by GPU, head size and types. Must not know kernels.

What binds, from what the compiler makes of each choice (registers and shared memory are in docs/kernels.md):

Rows. K and V are read once per program, so twice the rows are half the reads from L2: 64 rows of head size 128 would
ask Hopper's L2 for 7 TB/s at the speed aimed at, more than it gives. 128 rows need 8 warps, or the accumulator alone is
128 registers; Hopper's warp groups take 64 rows each. Where 128 rows of 256 would spill, 64.

Keys. More keys to a step are fewer rescalings of the accumulator and fewer barriers, and with fewer than 64 Hopper's
instructions read their operands from shared memory more slowly than they multiply. But a step's scores are registers.

Stages. K and V have as many buffers each as there are stages, since the ids of their blocks are carried: three hide the
L2's latency, and two do where a step is long.
"""

import dataclasses

from kernels.gpu.hardware import Hardware


@dataclasses.dataclass(frozen=True, slots=True)
class Tiling:
    """rows: query tokens times heads of a tile. keys: of a step of the loop. num_warps, num_stages: the compiler's."""

    rows: int
    keys: int
    num_warps: int
    num_stages: int


# Keys of a table: (head size, rounded up to a power of two; bytes of a cache's element). None spills, with or without
# a window, a cap and sinks.
_HOPPER = {
    # 128 registers or fewer: two programs to a multiprocessor, one's softmax beside the other's products.
    (64, 2): Tiling(128, 64, 8, 3),
    # The conversion takes the registers of a second program anyway.
    (64, 1): Tiling(128, 128, 8, 3),
    (128, 2): Tiling(128, 64, 8, 3),
    (128, 1): Tiling(128, 64, 8, 3),
    (256, 2): Tiling(128, 32, 8, 3),
    (256, 1): Tiling(64, 64, 8, 2),
}
# Without a window and a cap, registers are left for more keys to a step.
_HOPPER_PLAIN = _HOPPER | {(128, 2): Tiling(128, 128, 8, 3), (256, 2): Tiling(128, 64, 8, 2)}
# Here Q lies in registers and the products' operands pass through them.
_AMPERE = {
    (64, 2): Tiling(128, 64, 8, 3),
    (64, 1): Tiling(128, 64, 8, 3),
    (128, 2): Tiling(128, 64, 8, 3),
    (128, 1): Tiling(64, 64, 8, 3),
    (256, 2): Tiling(64, 32, 8, 3),
    (256, 1): Tiling(64, 32, 8, 2),
}
# 99 KiB of shared memory instead of 163.
_SMALL_AMPERE = _AMPERE | {(128, 2): Tiling(128, 64, 8, 2), (256, 2): Tiling(64, 32, 8, 2)}
# As those, and its own conversion from e4m3 needs fewer registers.
_ADA = _SMALL_AMPERE | {(128, 1): Tiling(128, 64, 8, 3)}
_TABLES = {80: _AMPERE, 86: _SMALL_AMPERE, 89: _ADA, 90: _HOPPER}

# Worth measuring on Hopper at head size 128, besides the table's. The first has two programs of four warps to a
# multiprocessor, each with 128 rows, so that their softmax and products overlap, but a step of 32 keys.
HOPPER_ALTERNATIVES = (Tiling(128, 32, 4, 3), Tiling(128, 64, 8, 3), Tiling(128, 128, 8, 2), Tiling(64, 64, 4, 2))


def tiling_for(hardware: Hardware, head_dim: int, query_bytes: int, cache_bytes: int, *, is_plain: bool) -> Tiling:
    """The table's choice for a padded head size. is_plain: neither window nor soft cap.

    float32 operands are multiplied without matrix units, from registers; that is for tests and small models.
    """
    if query_bytes == 4:
        return Tiling(16, 16, 8, 2) if head_dim <= 64 else Tiling(32, 16, 8, 2)
    table = _HOPPER_PLAIN if is_plain and hardware.capability == 90 else _TABLES.get(hardware.capability, _SMALL_AMPERE)
    return table[max(head_dim, 64), cache_bytes]
