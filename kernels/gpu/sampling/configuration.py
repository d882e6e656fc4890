"""Sizes of the sampler's and the log-probabilities' launches, the same for every number of rows."""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Configuration:
    """Powers of 2. They decide in which order a row's sums are taken, so nothing else about a batch may choose them.

    span: tokens of which the largest is kept, for candidates. spans: per chunk, at least one per warp.
    capacity: of a row's compact buffer. tile, wide_tile: tokens that the row's program reads at once, of that buffer
    and of the whole row. chunk_warps, row_warps: of the two launches.
    """

    span: int = 256
    spans: int = 16
    capacity: int = 8192
    tile: int = 2048
    wide_tile: int = 4096
    chunk_warps: int = 4
    row_warps: int = 16


# A span is a warp's 16-byte loads of bfloat16, a chunk 32 tokens per thread: what a program does once, its reductions
# across threads above all, would be half of its instructions at 16. A row of 152k tokens still has 38 chunks, so that
# one row alone spreads over the GPU. A row's program is alone on its multiprocessor, where latency is what counts: 16
# warps, few tokens per thread from the buffer, which mostly holds tens, and as many loads in flight from the row as fit
# in registers (8192 tokens spill). The architectures from sm_80 to sm_90 have the same registers per thread and
# instructions for this. The buffer is to hold what top_p keeps of nearly every row that a language model makes.
SAMPLER = Configuration()
# The best tokens are some tens: 20 rounds over a tile of few tokens per thread, with few warps to wait for.
LOGPROBS = Configuration(capacity=2048, tile=512, wide_tile=4096, row_warps=8)
