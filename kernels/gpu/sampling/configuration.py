"""Sizes of the sampler's and the log-probabilities' launches, the same for every number of rows."""

import dataclasses

from kernels.gpu.hardware import Hardware


@dataclasses.dataclass(frozen=True, slots=True)
class Configuration:
    """Powers of 2. They decide in which order a row's sums are taken, so nothing else about a batch may choose them.

    span: tokens of which the largest is kept, for candidates. spans: per chunk. capacity: of a row's compact buffer.
    tile: tokens that the row's program reads at once. chunk_warps, row_warps: of the two launches;
    a chunk has at least one span per warp.
    """

    span: int = 256
    spans: int = 16
    capacity: int = 8192
    tile: int = 4096
    chunk_warps: int = 4
    row_warps: int = 16


# A span is a warp's 16-byte loads of bfloat16, a chunk 32 tokens per thread: what a program does once, its reductions
# across threads above all, would be half of its instructions at 16. A row of 152k tokens still has 38 chunks, so that
# one row alone spreads over the GPU. A row's program is alone on its multiprocessor, where latency is what counts: 16
# warps with 8 tokens per thread. The architectures from sm_80 to sm_90 have the same registers per thread and
# instructions for this. The buffer is to hold what top_p keeps of nearly every row that a language model makes.
SAMPLER = Configuration()
# The best tokens are some tens: 20 rounds over a tile of few tokens per thread, with few warps to wait for.
LOGPROBS = Configuration(capacity=2048, tile=2048, row_warps=8)


def sampler_configuration(hardware: Hardware) -> Configuration:
    """What suits the GPU."""
    return SAMPLER
