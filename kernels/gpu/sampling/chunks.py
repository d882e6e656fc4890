"""The first launch of the sampler: one program per row and chunk of the vocabulary reduces its chunk to a few numbers.

Must not know how chunks are put together (rows.py).
"""

import triton
import triton.language as tl

from kernels.gpu.arithmetic import LOG2_E
from kernels.gpu.sampling.edits import edit_chunk
from kernels.gpu.sampling.noise import exponential, row_keys, uniform
from kernels.gpu.sampling.search import inverse


@triton.jit
def keeps_all(row, vocab, parameters):
    """Whether no filter can take a token from the row. parameters: temperature, top_k, top_p, min_p, ..."""
    top_k = tl.load(parameters[1] + row)
    bounded = (top_k > 0) & (top_k < vocab)
    return (not bounded) & (tl.load(parameters[2] + row) >= 1.0) & (tl.load(parameters[3] + row) <= 0.0)


@triton.jit
def least_of(x):
    """The minimum of a tile, of any layout: within threads, then within warps, then across them.

    So does every reduction here: over all dimensions at once. One dimension after the other costs, where the compiler
    deals the warps out along the first (triton 3.6 does), 32 rounds through shared memory.
    """
    return tl.min(x)


@triton.jit
def chunk_tokens(chunk, WARPS: tl.constexpr, SPANS: tl.constexpr, SPAN: tl.constexpr):
    """The token ids of a chunk, int32 [SPANS / WARPS, WARPS, SPAN]: as spans of 256 bfloat16, a warp's 16-byte loads.

    Of three dimensions, so that each span lies in one warp.
    """
    spans = tl.arange(0, SPANS // WARPS)[:, None, None] * WARPS + tl.arange(0, WARPS)[None, :, None]
    return (chunk * SPANS + spans) * SPAN + tl.arange(0, SPAN)[None, None, :]


@triton.jit
def store_span_peaks(span_peaks_ptr, x, WARPS: tl.constexpr, SPANS: tl.constexpr):
    """The largest logit of each span of a chunk, at span_peaks_ptr [SPANS]."""
    spans = tl.arange(0, SPANS // WARPS)[:, None] * WARPS + tl.arange(0, WARPS)[None, :]
    tl.store(span_peaks_ptr + spans, tl.max(x, 2))


@triton.jit
def first_of(tokens, weights, k1, k2, vocab):
    """(the least E * weights, its token) of a tile; weights are exp((peak - x) / T), infinite where no token is.

    E is never less than v: the logarithm is taken for those tokens only whose v * weight is below the best E * weight
    so far, from the least up. As E = v (1 + v / 2 + ...) and the first have small v, that is hardly ever a second one;
    a chunk of 4096 tokens costs no more logarithms than that.
    """
    bounds = uniform(tokens, k1, k2) * weights
    least = least_of(bounds)
    # Where all are infinite no token is looked at.
    best = tl.full((), float("inf"), tl.float32)
    winner = vocab - 1
    while least < best:
        token = least_of(tl.where(bounds == least, tokens, vocab - 1))
        v = uniform(token, k1, k2)
        time = least * (exponential(v) / v)
        winner = tl.where(time < best, token, winner)
        best = tl.minimum(time, best)
        bounds = tl.where(tokens == token, float("inf"), bounds)
        least = least_of(bounds)
    return best, winner


@triton.jit
def reduce_chunks(
    logits_ptr,
    logits_stride,
    parameters,
    edits,
    edited_ptr,
    flags_ptr,
    chunks,
    span_peaks_ptr,
    vocab,
    WARPS: tl.constexpr,
    SPANS: tl.constexpr,
    SPAN: tl.constexpr,
):
    """Grid (rows, chunks of SPANS * SPAN tokens); peak is the chunk's largest logit, after the edits.

    parameters: temperature, top_k, top_p, min_p, seeds, positions; chunks: peaks, amounts, winners, [rows, chunks].
    Always peaks[row, chunk] = peak. A greedy row: winners = the lowest id of the peak. A row that keeps all tokens:
    amounts = the least E * exp((peak - x) / T), winners = its id. A filtered row: amounts = the sum of
    exp((x - peak) / T), span_peaks = the largest logit of each span of SPAN tokens.
    flags[row] = whether the row's logits are those at edited_ptr [rows, vocab], float32.
    """
    row = tl.program_id(0).to(tl.int64)
    chunk = tl.program_id(1)
    at = row * tl.num_programs(1) + chunk
    tokens = chunk_tokens(chunk, WARPS, SPANS, SPAN)
    inside = tokens < vocab
    row_ptr = logits_ptr + row * logits_stride
    x = tl.load(row_ptr + tokens, mask=inside, other=float("-inf")).to(tl.float32)
    temperature = tl.load(parameters[0] + row)
    is_plain = keeps_all(row, vocab, parameters)
    if edits is not None:
        must_store = (temperature != 0.0) & (not is_plain)
        row_edited_ptr = edited_ptr + row * vocab
        x, has_edits = edit_chunk(
            x,
            tokens,
            inside,
            row,
            chunk * (SPANS * SPAN),
            SPANS * SPAN,
            row_ptr,
            row_edited_ptr,
            vocab,
            edits,
            must_store,
            256,
        )
        tl.store(flags_ptr + row, has_edits.to(tl.int32))
    peak = tl.max(x)
    tl.store(chunks[0] + at, peak)
    if temperature == 0.0:
        tl.store(chunks[2] + at, least_of(tl.where(x == peak, tokens, vocab - 1)))
    else:
        # A chunk of nothing but -inf must not make NaN of -inf - -inf.
        base = tl.where(peak > float("-inf"), peak, 0.0)
        depth = (base - x) * (inverse(temperature) * LOG2_E)
        if is_plain:
            k1, k2 = row_keys(tl.load(parameters[4] + row), tl.load(parameters[5] + row))
            time, winner = first_of(tokens, tl.exp2(depth), k1, k2, vocab)
            tl.store(chunks[1] + at, time)
            tl.store(chunks[2] + at, winner)
        else:
            tl.store(chunks[1] + at, tl.sum(tl.exp2(-depth)))
            store_span_peaks(span_peaks_ptr + at * SPANS, x, WARPS, SPANS)
