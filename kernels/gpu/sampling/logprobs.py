"""`reference.logprobs` in two launches, as the sampler's: chunks of the vocabulary, then rows.

Reads the logits as the model gave them. Must not know how tokens are chosen.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.arithmetic import LOG2_E
from kernels.gpu.sampling.chunks import chunk_tokens, store_span_peaks
from kernels.gpu.sampling.configuration import LOGPROBS, Configuration
from kernels.gpu.sampling.noise import LN_2
from kernels.gpu.sampling.search import gather, least_limit
from kernels.interface import Logprobs

MAX_NUM_TOP = 20
# Past every token id.
NO_TOKEN = tl.constexpr(0x7FFFFFFF)


@triton.jit
def _reduce_chunks(
    logits_ptr,
    logits_stride,
    token_ids_ptr,
    chunks,
    span_peaks_ptr,
    vocab,
    WARPS: tl.constexpr,
    SPANS: tl.constexpr,
    SPAN: tl.constexpr,
):
    """Grid (rows, chunks of SPANS * SPAN tokens), chunks: peaks, sums of exp(x - peak), numbers of x > own logit."""
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    at = row * tl.num_programs(1) + chunk
    tokens = chunk_tokens(chunk, WARPS, SPANS, SPAN)
    row_ptr = logits_ptr + row * logits_stride
    x = tl.load(row_ptr + tokens, mask=tokens < vocab, other=float("-inf")).to(tl.float32)
    own = tl.load(row_ptr + tl.load(token_ids_ptr + row)).to(tl.float32)
    peak = tl.max(x)
    base = tl.where(peak > float("-inf"), peak, 0.0)
    tl.store(chunks[0] + at, peak)
    tl.store(chunks[1] + at, tl.sum(tl.exp2((x - base) * LOG2_E)))
    tl.store(chunks[2] + at, tl.sum((x > own).to(tl.int32)))
    store_span_peaks(span_peaks_ptr + at * SPANS, x, WARPS, SPANS)


@triton.jit
def _next_best(source_ptr, ids_ptr, num, last, last_id, HAS_IDS: tl.constexpr, TILE: tl.constexpr):
    """(logit, id) of what follows (last, last_id) among source[:num], larger logits first, equals by ascending id."""
    best = tl.full([TILE], float("-inf"), tl.float32)
    best_ids = tl.full([TILE], 0x7FFFFFFF, tl.int32)
    for start in range(0, num, TILE):
        i = start + tl.arange(0, TILE)
        x = tl.load(source_ptr + i, mask=i < num, other=float("-inf")).to(tl.float32)
        tokens = i
        if HAS_IDS:
            tokens = tl.load(ids_ptr + i, mask=i < num, other=0)
        follows = (i < num) & ((x < last) | ((x == last) & (tokens > last_id)))
        better = follows & ((x > best) | (best_ids == NO_TOKEN))
        best = tl.where(better, x, best)
        best_ids = tl.where(better, tokens, best_ids)
    largest = tl.max(best, 0)
    return largest, tl.min(tl.where(best == largest, best_ids, NO_TOKEN), 0)


@triton.jit
def _write_top(
    source_ptr, ids_ptr, num, peak, log_mass, top_ids_ptr, top_ptr, num_top, HAS_IDS: tl.constexpr, TILE: tl.constexpr
):
    """The num_top best of source[:num], one after the other."""
    last = tl.full((), float("inf"), tl.float32)
    last_id = tl.full((), -1, tl.int32)
    for j in range(num_top):
        last, last_id = _next_best(source_ptr, ids_ptr, num, last, last_id, HAS_IDS, TILE)
        # A row that pads a graph may hold nothing comparable.
        tl.store(top_ids_ptr + j, tl.where(last_id == NO_TOKEN, 0, last_id).to(tl.int64))
        tl.store(top_ptr + j, (last - peak) - log_mass)


@triton.jit(do_not_specialize=["num_top"])
def _finish_rows(
    logits_ptr,
    logits_stride,
    token_ids_ptr,
    chunks,
    buffers,
    chosen_ptr,
    ranks_ptr,
    top_ids_ptr,
    top_ptr,
    ways_ptr,
    vocab,
    num_chunks,
    num_spans,
    num_top,
    CHUNKS: tl.constexpr,
    SPAN: tl.constexpr,
    CAPACITY: tl.constexpr,
    TILE: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Grid (rows). buffers: span peaks and a list of spans, [rows, num_spans]; ids and values, [rows, CAPACITY].

    The num_top best are at least the num_top-th of the spans' peaks: what is, is gathered first. Where that is more
    than the buffer holds, or less than num_top because some are -inf, the whole row is read for each. ways: whether it
    was.
    """
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, CHUNKS)
    at = row * num_chunks + i
    peaks = tl.load(chunks[0] + at, mask=i < num_chunks, other=float("-inf"))
    masses = tl.load(chunks[1] + at, mask=i < num_chunks, other=0.0)
    greater = tl.load(chunks[2] + at, mask=i < num_chunks, other=0)
    peak = tl.max(peaks, 0)
    log_mass = tl.log2(tl.sum(masses * tl.exp2((peaks - peak) * LOG2_E), 0)) * LN_2
    row_ptr = logits_ptr + row * logits_stride
    own = tl.load(row_ptr + tl.load(token_ids_ptr + row)).to(tl.float32)
    tl.store(chosen_ptr + row, (own - peak) - log_mass)
    tl.store(ranks_ptr + row, tl.sum(greater, 0).to(tl.int64) + 1)
    way = 0
    if num_top > 0:
        ids_ptr = buffers[2] + row * CAPACITY
        values_ptr = buffers[3] + row * CAPACITY
        span_peaks_ptr = buffers[0] + row * num_spans
        bound = tl.full((), 0x7F7FFFFF, tl.int32)
        limit = least_limit(span_peaks_ptr, num_spans, peak, 1.0, bound, num_top * 1.0, False, TILE)
        num_found = gather(
            row_ptr,
            vocab,
            span_peaks_ptr,
            num_spans,
            peak,
            1.0,
            limit,
            buffers[1] + row * num_spans,
            ids_ptr,
            values_ptr,
            SPAN,
            CAPACITY,
            TILE,
            WIDE,
        )
        row_top_ids_ptr = top_ids_ptr + row * num_top
        row_top_ptr = top_ptr + row * num_top
        if (num_found > CAPACITY) | (num_found < num_top):
            way = 1
            _write_top(row_ptr, ids_ptr, vocab, peak, log_mass, row_top_ids_ptr, row_top_ptr, num_top, False, WIDE)
        else:
            _write_top(
                values_ptr, ids_ptr, num_found, peak, log_mass, row_top_ids_ptr, row_top_ptr, num_top, True, TILE
            )
    tl.store(ways_ptr + row, way)


def logprobs(logits: Tensor, token_ids: Tensor, num_top: int) -> Logprobs:
    """See `reference.logprobs`: logits [rows, vocab], rows possibly strided, token_ids int64 [rows], num_top to 20."""
    return find(logits, token_ids, num_top, LOGPROBS)[0]


def find(logits: Tensor, token_ids: Tensor, num_top: int, configuration: Configuration) -> tuple[Logprobs, Tensor]:
    """(what `logprobs` returns, whether each row was read again for every one of its best, int32 [rows])."""
    num_rows, vocab = logits.shape
    if num_top > MAX_NUM_TOP:
        raise ValueError(f"num_top is {num_top}, more than {MAX_NUM_TOP}")
    if logits.stride(1) != 1:
        raise ValueError("the logits of a row must lie side by side")
    # The caller may have gathered them with a stride; the kernels read them as one run.
    token_ids = token_ids.contiguous()
    num_top, sizes = min(num_top, vocab), configuration
    num_chunks = triton.cdiv(vocab, sizes.span * sizes.spans)
    num_spans = num_chunks * sizes.spans

    def empty(dtype: torch.dtype, *shape: int) -> Tensor:
        return torch.empty(num_rows, *shape, dtype=dtype, device=logits.device)

    found = Logprobs(
        chosen=empty(torch.float32),
        ranks=empty(torch.int64),
        top_ids=empty(torch.int64, num_top),
        top=empty(torch.float32, num_top),
    )
    ways = empty(torch.int32)
    if num_rows == 0:
        return found, ways
    chunks = tuple(empty(dtype, num_chunks) for dtype in (torch.float32, torch.float32, torch.int32))
    buffers = (
        empty(torch.float32, num_spans),
        empty(torch.int32, num_spans),
        empty(torch.int32, sizes.capacity),
        empty(torch.float32, sizes.capacity),
    )
    _reduce_chunks[(num_rows, num_chunks)](
        logits,
        logits.stride(0),
        token_ids,
        chunks,
        buffers[0],
        vocab,
        WARPS=sizes.chunk_warps,
        SPANS=sizes.spans,
        SPAN=sizes.span,
        num_warps=sizes.chunk_warps,
    )
    _finish_rows[(num_rows,)](
        logits,
        logits.stride(0),
        token_ids,
        chunks,
        buffers,
        found.chosen,
        found.ranks,
        found.top_ids,
        found.top,
        ways,
        vocab,
        num_chunks,
        num_spans,
        num_top,
        CHUNKS=triton.next_power_of_2(num_chunks),
        SPAN=sizes.span,
        CAPACITY=sizes.capacity,
        TILE=sizes.tile,
        WIDE=sizes.wide_tile,
        num_warps=sizes.row_warps,
    )
    return found, ways
