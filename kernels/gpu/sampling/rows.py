"""The second launch of the sampler: one program per row puts the chunks together and chooses the token.

A filtered row's kept tokens are searched in a compact buffer that provably holds them all, or, where none of CAPACITY
tokens does (flat rows, many ties), by the same search over the whole row in memory: as right, slower.
Must not know how the chunks were made (chunks.py).
"""

import triton
import triton.language as tl

from kernels.gpu.arithmetic import LOG2_E
from kernels.gpu.sampling.chunks import keeps_all
from kernels.gpu.sampling.noise import LN_2, exponential, row_keys, uniform
from kernels.gpu.sampling.search import amount, depth_keys, gather, inverse, least_limit

# How a row's token was found, for tests and benchmarks; the kernel writes these numbers.
GREEDY, PLAIN, BUFFER, WHOLE_ROW = 0, 1, 2, 3


@triton.jit
def race(source_ptr, ids_ptr, num, vocab, peak, scale, limit, k1, k2, HAS_IDS: tl.constexpr, TILE: tl.constexpr):
    """The token with the least E * exp(depth) of those with keys of at most `limit`; of equals the lowest id.

    source[i] is the logit of token i, or of token ids[i] where HAS_IDS; ids ascend.
    """
    least = tl.full([TILE], float("inf"), tl.float32)
    winners = tl.zeros([TILE], tl.int32) + (vocab - 1)
    for start in range(0, num, TILE):
        i = start + tl.arange(0, TILE)
        x = tl.load(source_ptr + i, mask=i < num, other=float("-inf")).to(tl.float32)
        tokens = i
        if HAS_IDS:
            tokens = tl.load(ids_ptr + i, mask=i < num, other=0)
        depth, keys = depth_keys(x, peak, scale)
        times = exponential(uniform(tokens, k1, k2)) * tl.exp2(depth * LOG2_E)
        better = (keys <= limit) & (times < least)
        least = tl.where(better, times, least)
        winners = tl.where(better, tokens, winners)
    best = tl.min(least, 0)
    return tl.min(tl.where(least == best, winners, vocab - 1), 0)


@triton.jit
def choose(
    source_ptr,
    ids_ptr,
    num,
    vocab,
    peak,
    scale,
    limit,
    top_k,
    top_p,
    total,
    k1,
    k2,
    HAS_IDS: tl.constexpr,
    TILE: tl.constexpr,
):
    """The draw among source[:num] after top_k and top_p; `limit` is what min_p leaves, or the buffer holds.

    total: the mass that top_p is a part of; not positive where it is that of the tokens which top_k leaves.
    """
    if top_k > 0:
        limit = least_limit(source_ptr, num, peak, scale, limit, top_k.to(tl.float32), False, TILE)
    if top_p < 1.0:
        if total <= 0.0:
            total = amount(source_ptr, num, peak, scale, limit, True, TILE)
        # The peak alone weighs 1: a target below that keeps it, and what ties with it.
        target = tl.maximum(top_p * total, 1e-30)
        limit = least_limit(source_ptr, num, peak, scale, limit, target, True, TILE)
    return race(source_ptr, ids_ptr, num, vocab, peak, scale, limit, k1, k2, HAS_IDS, TILE)


@triton.jit
def first_limit(
    row_ptr,
    vocab,
    span_peaks_ptr,
    num_spans,
    values_ptr,
    peak,
    scale,
    bound,
    top_k,
    min_p,
    SPAN,
    CAPACITY: tl.constexpr,
    TILE: tl.constexpr,
):
    """A limit, at most `bound`, within which the kept tokens are likely all to lie, and not more than CAPACITY others.

    All that min_p bounds, where top_k does not. The k-th largest of the spans' peaks has k tokens above it for certain,
    and few more while k is small. For other rows a sample of every (vocab / CAPACITY)-th token, written to values_ptr,
    says where some 3/4 * CAPACITY tokens lie: of 152k tokens and a sample of 8192 that is the 331st, so that the number
    is right within 17 % at three deviations, however the ids are ordered.
    """
    limit = bound
    num_live = amount(span_peaks_ptr, num_spans, peak, scale, bound, False, TILE)
    if (num_live * SPAN > CAPACITY) & ((top_k > 0) | (min_p <= 0.0)):
        if (top_k > 0) & (top_k * 2.0 <= num_live):
            target = top_k.to(tl.float32)
            limit = least_limit(span_peaks_ptr, num_spans, peak, scale, bound, target, False, TILE)
        else:
            for start in range(0, CAPACITY, TILE):
                i = start + tl.arange(0, TILE)
                tokens = (i.to(tl.int64) * vocab) // CAPACITY
                x = tl.load(row_ptr + tokens, mask=i < CAPACITY, other=float("-inf")).to(tl.float32)
                tl.store(values_ptr + i, x, mask=i < CAPACITY)
            tl.debug_barrier()
            target = tl.maximum(CAPACITY * (0.75 * CAPACITY) / vocab, 1.0)
            limit = least_limit(values_ptr, CAPACITY, peak, scale, bound, target, False, TILE)
            # The sample is read no more when `gather` writes there.
            tl.debug_barrier()
    return limit


@triton.jit
def draw_filtered(
    row_ptr,
    row,
    vocab,
    parameters,
    buffers,
    num_spans,
    peak,
    total,
    SPAN: tl.constexpr,
    CAPACITY: tl.constexpr,
    TILE: tl.constexpr,
    WIDE: tl.constexpr,
):
    """(token, way) of a row with filters; total: the sum of exp(-depth) over the whole row."""
    scale = inverse(tl.load(parameters[0] + row))
    top_k = tl.load(parameters[1] + row)
    top_k = tl.where(top_k < vocab, tl.maximum(top_k, 0), 0)
    top_p = tl.load(parameters[2] + row)
    min_p = tl.load(parameters[3] + row)
    k1, k2 = row_keys(tl.load(parameters[4] + row), tl.load(parameters[5] + row))
    span_peaks_ptr = buffers[0] + row * num_spans
    spans_ptr = buffers[1] + row * num_spans
    ids_ptr = buffers[2] + row * CAPACITY
    values_ptr = buffers[3] + row * CAPACITY
    bound = tl.full((), 0x7F7FFFFF, tl.int32)
    if min_p > 0.0:
        bound = tl.minimum(tl.abs(tl.log2(min_p) * LN_2).to(tl.int32, bitcast=True), bound)
    limit = first_limit(
        row_ptr, vocab, span_peaks_ptr, num_spans, values_ptr, peak, scale, bound, top_k, min_p, SPAN, CAPACITY, TILE
    )
    num_found = gather(
        row_ptr,
        vocab,
        span_peaks_ptr,
        num_spans,
        peak,
        scale,
        limit,
        spans_ptr,
        ids_ptr,
        values_ptr,
        SPAN,
        CAPACITY,
        TILE,
        WIDE,
    )
    # All that min_p keeps is there, or the k largest and their ties are; then the mass is that of the buffer's tokens.
    is_enough = (limit >= bound) | ((top_k > 0) & (top_k <= num_found))
    part_of = total * 0.0
    if (not is_enough) & (top_k == 0) & (min_p <= 0.0) & (num_found <= CAPACITY):
        # Only top_p bounds the row: the buffer must hold that part of the whole mass.
        part_of = total
        is_enough = amount(values_ptr, num_found, peak, scale, limit, True, TILE) >= top_p * total
    if is_enough & (num_found <= CAPACITY):
        token = choose(
            values_ptr, ids_ptr, num_found, vocab, peak, scale, limit, top_k, top_p, part_of, k1, k2, True, TILE
        )
        way = 2
    else:
        token = choose(
            row_ptr, ids_ptr, vocab, vocab, peak, scale, bound, top_k, top_p, total * 0.0, k1, k2, False, WIDE
        )
        way = 3
    return token, way


@triton.jit
def choose_tokens(
    logits_ptr,
    logits_stride,
    parameters,
    edited_ptr,
    flags_ptr,
    chunks,
    buffers,
    tokens_ptr,
    ways_ptr,
    vocab,
    num_chunks,
    num_spans,
    CHUNKS: tl.constexpr,
    SPAN: tl.constexpr,
    CAPACITY: tl.constexpr,
    TILE: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Grid (rows): tokens[row] int64 and ways[row] from what `reduce_chunks` left in `chunks`.

    parameters: temperature, top_k, top_p, min_p, seeds, positions. chunks: peaks, amounts, winners, [rows, num_chunks].
    buffers: span peaks and a list of spans, [rows, num_spans]; ids and values, [rows, CAPACITY]. CHUNKS: a power of 2.
    """
    row = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, CHUNKS)
    inside = i < num_chunks
    at = row * num_chunks + i
    peaks = tl.load(chunks[0] + at, mask=inside, other=float("-inf"))
    peak = tl.max(peaks, 0)
    temperature = tl.load(parameters[0] + row)
    if temperature == 0.0:
        winners = tl.load(chunks[2] + at, mask=inside, other=0)
        token = tl.min(tl.where((peaks == peak) & inside, winners, vocab - 1), 0)
        way = 0
    else:
        amounts = tl.load(chunks[1] + at, mask=inside, other=1.0)
        # How far each chunk's peak is below the row's, as in `reduce_chunks`.
        depth = (peak - peaks) * (inverse(temperature) * LOG2_E)
        if keeps_all(row, vocab, parameters):
            winners = tl.load(chunks[2] + at, mask=inside, other=0)
            times = tl.where(inside, amounts * tl.exp2(depth), float("inf"))
            token = tl.min(tl.where((times == tl.min(times, 0)) & inside, winners, vocab - 1), 0)
            way = 1
        else:
            total = tl.sum(amounts * tl.exp2(-depth), 0)
            row_ptr = logits_ptr + row * logits_stride
            if edited_ptr is not None:
                if tl.load(flags_ptr + row) != 0:
                    token, way = draw_filtered(
                        edited_ptr + row * vocab,
                        row,
                        vocab,
                        parameters,
                        buffers,
                        num_spans,
                        peak,
                        total,
                        SPAN,
                        CAPACITY,
                        TILE,
                        WIDE,
                    )
                else:
                    token, way = draw_filtered(
                        row_ptr, row, vocab, parameters, buffers, num_spans, peak, total, SPAN, CAPACITY, TILE, WIDE
                    )
            else:
                token, way = draw_filtered(
                    row_ptr, row, vocab, parameters, buffers, num_spans, peak, total, SPAN, CAPACITY, TILE, WIDE
                )
    # Rows that pad a graph may hold anything, but no token is ever outside the vocabulary.
    tl.store(tokens_ptr + row, tl.minimum(tl.maximum(token, 0), vocab - 1).to(tl.int64))
    tl.store(ways_ptr + row, way)
