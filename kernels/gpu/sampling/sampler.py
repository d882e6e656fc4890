"""`reference.sample` in two launches: chunks of the vocabulary (chunks.py), then rows (rows.py).

The grids depend on the numbers of rows and tokens alone and the host reads no value, so that one CUDA graph serves
every mixture of rows. A row's token does not depend on the other rows: its chunks, tiles and the order of its sums are
the same wherever it stands.
"""

import torch
import triton
from torch import Tensor

from kernels.gpu.sampling.chunks import reduce_chunks
from kernels.gpu.sampling.configuration import SAMPLER, Configuration
from kernels.gpu.sampling.rows import choose_tokens
from kernels.interface import LogitEdits, SamplingTensors


def sample(logits: Tensor, sampling: SamplingTensors) -> Tensor:
    """See `reference.sample`: logits [rows, vocab], rows possibly strided, to int64 [rows]; logits stay as they are.

    One kernel serves greedy rows and others, so `all_greedy` is not read. Edits of None are a cheaper kernel of its
    own; with edits, rows without any cost next to nothing.
    """
    return draw(logits, sampling, SAMPLER)[0]


def draw(logits: Tensor, sampling: SamplingTensors, configuration: Configuration) -> tuple[Tensor, Tensor]:
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

    has_edits = sampling.edits is not None
    edited = scratch(vocab, torch.float32) if has_edits else None
    flags = scratch(1, torch.int32) if has_edits else None
    chunks = tuple(scratch(num_chunks, dtype) for dtype in (torch.float32, torch.float32, torch.int32))
    buffers = (
        scratch(num_spans, torch.float32),
        scratch(num_spans, torch.int32),
        scratch(sizes.capacity, torch.int32),
        scratch(sizes.capacity, torch.float32),
    )
    columns = (
        sampling.temperature,
        sampling.top_k,
        sampling.top_p,
        sampling.min_p,
        sampling.seeds,
        sampling.positions,
    )
    # The caller may have gathered them with a stride; the kernels read each as one run. Runs are not copied.
    parameters = tuple(column.contiguous() for column in columns)
    reduce_chunks[(num_rows, num_chunks)](
        logits,
        logits.stride(0),
        parameters,
        fields(sampling.edits),
        edited,
        flags,
        chunks,
        buffers[0],
        vocab,
        WARPS=sizes.chunk_warps,
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
        WIDE=sizes.wide_tile,
        num_warps=sizes.row_warps,
    )
    return tokens, ways


def fields(edits: LogitEdits | None) -> tuple[Tensor, ...] | None:
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
