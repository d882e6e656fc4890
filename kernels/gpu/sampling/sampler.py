"""`reference.sample` in two launches: chunks of the vocabulary (chunks.py), then rows (rows.py).

The grids depend on the numbers of rows and tokens alone and the host reads no value, so that one CUDA graph serves
every mixture of rows. A row's token does not depend on the other rows: its chunks, tiles and the order of its sums are
the same wherever it stands.
"""

import dataclasses
import functools
from collections.abc import Iterator

import torch
import triton
from torch import Tensor

from kernels.gpu.cases import CompileCase
from kernels.gpu.hardware import Hardware
from kernels.gpu.sampling.chunks import reduce_chunks
from kernels.gpu.sampling.edits import update_counts
from kernels.gpu.sampling.inputs import LogitEdits, SamplerInputs
from kernels.gpu.sampling.rows import choose_tokens


@dataclasses.dataclass(frozen=True, slots=True)
class Configuration:
    """Sizes, powers of 2, the same for every number of rows, so that a row's sums are too.

    span: tokens of which the largest is kept, for candidates. spans: per chunk. capacity: of a row's compact buffer.
    tile: tokens that the row's program reads at once. chunk_warps, row_warps: of the two launches.
    """

    span: int = 256
    spans: int = 16
    capacity: int = 4096
    tile: int = 4096
    chunk_warps: int = 8
    row_warps: int = 16


# A span is one warp's 16-byte loads of bfloat16. A chunk is 16 tokens per thread: two loads in flight, few registers,
# and 38 programs per row of 152k tokens, so that one row alone still spreads over the multiprocessors. A row's program
# is alone on its multiprocessor, where latency is what counts: 16 warps with 8 tokens per thread. The architectures
# from sm_80 to sm_90 have the same warps, registers per thread and instructions for this.
CONFIGURATION = Configuration()


def configuration_of(hardware: Hardware) -> Configuration:
    """What suits the GPU."""
    return CONFIGURATION


def sample(logits: Tensor, inputs: SamplerInputs, hardware: Hardware) -> Tensor:
    """See `reference.sample`: logits [rows, vocab], rows possibly strided, to int64 [rows]; logits stay as they are."""
    return draw(logits, inputs, configuration_of(hardware))[0]


def draw(logits: Tensor, inputs: SamplerInputs, configuration: Configuration) -> tuple[Tensor, Tensor]:
    """(tokens int64 [rows], how each was found int32 [rows]: see rows.GREEDY and what follows it)."""
    num_rows, vocab = logits.shape
    if logits.stride(1) != 1:
        raise ValueError("the logits of a row must lie side by side")
    device, sizes = logits.device, configuration
    tokens = torch.empty(num_rows, dtype=torch.int64, device=device)
    ways = torch.empty(num_rows, dtype=torch.int32, device=device)
    if num_rows == 0:
        return tokens, ways
    num_chunks = triton.cdiv(vocab, sizes.span * sizes.spans)
    num_spans = num_chunks * sizes.spans

    def scratch(width: int, dtype: torch.dtype) -> Tensor:
        return torch.empty(num_rows, width, dtype=dtype, device=device)

    has_edits = inputs.edits is not None
    edited = scratch(vocab, torch.float32) if has_edits else None
    flags = scratch(1, torch.int32) if has_edits else None
    chunks = tuple(scratch(num_chunks, dtype) for dtype in (torch.float32, torch.float32, torch.int32))
    buffers = (
        scratch(num_spans, torch.float32),
        scratch(num_spans, torch.int32),
        scratch(sizes.capacity, torch.int32),
        scratch(sizes.capacity, torch.float32),
    )
    parameters = (
        inputs.temperature,
        inputs.top_k,
        inputs.top_p,
        inputs.min_p,
        inputs.seeds,
        inputs.positions,
    )
    reduce_chunks[(num_rows, num_chunks)](
        logits,
        logits.stride(0),
        parameters,
        _fields(inputs.edits),
        edited,
        flags,
        chunks,
        buffers[0],
        vocab,
        SPANS=sizes.spans,
        SPAN=sizes.span,
        num_warps=sizes.chunk_warps,
    )
    choose_tokens[(num_rows,)](
        logits,
        logits.stride(0),
        parameters,
        edited,
        flags,
        chunks,
        buffers,
        tokens,
        ways,
        vocab,
        num_chunks,
        num_spans,
        CHUNKS=triton.next_power_of_2(num_chunks),
        SPAN=sizes.span,
        CAPACITY=sizes.capacity,
        TILE=sizes.tile,
        num_warps=sizes.row_warps,
    )
    return tokens, ways


def _fields(edits: LogitEdits | None) -> tuple[Tensor, ...] | None:
    """The tensors in the order in which `edit_chunk` counts them."""
    if edits is None:
        return None
    return (
        edits.bitmask,
        edits.mask_row,
        edits.bias_start,
        edits.bias_ids,
        edits.bias_values,
        edits.counts,
        edits.count_slot,
        edits.repetition,
        edits.frequency,
        edits.presence,
    )


def inputs_of(num_rows: int, vocab: int, device: str | torch.device, *, with_edits: bool) -> SamplerInputs:
    """Uninitialised inputs of the right types, for compiling and for a graph's static buffers."""

    def column(dtype: torch.dtype, size: int = num_rows) -> Tensor:
        return torch.empty(size, dtype=dtype, device=device)

    edits = None
    if with_edits:
        edits = LogitEdits(
            bitmask=torch.empty(num_rows, -(-vocab // 32), dtype=torch.int32, device=device),
            mask_row=column(torch.int32),
            bias_start=column(torch.int32, num_rows + 1),
            bias_ids=column(torch.int32, 1024),
            bias_values=column(torch.float32, 1024),
            counts=torch.empty(num_rows, vocab, dtype=torch.int32, device=device),
            count_slot=column(torch.int32),
            repetition=column(torch.float32),
            frequency=column(torch.float32),
            presence=column(torch.float32),
        )
    return SamplerInputs(
        temperature=column(torch.float32),
        top_k=column(torch.int32),
        top_p=column(torch.float32),
        min_p=column(torch.float32),
        seeds=column(torch.int64),
        positions=column(torch.int64),
        edits=edits,
    )


def compile_cases(hardware: Hardware) -> Iterator[CompileCase]:
    """A vocabulary of 151936 tokens, logits in bfloat16 and float32, with and without edits; and the counts."""
    vocab = 151936
    for dtype in (torch.bfloat16, torch.float32):
        logits = torch.empty(8, vocab, dtype=dtype, device="meta")
        for with_edits in (False, True):
            inputs = inputs_of(8, vocab, "meta", with_edits=with_edits)
            name = f"{str(dtype).removeprefix('torch.')} {vocab}{', with edits' if with_edits else ''}"
            yield CompileCase(name, functools.partial(sample, logits, inputs, hardware))
    counts = torch.empty(8, vocab, dtype=torch.int32, device="meta")
    slots = torch.empty(8, dtype=torch.int32, device="meta")
    yield CompileCase("counts", functools.partial(update_counts, counts, slots, slots.to(torch.int64)))
