"""Exact selection by value over one row in memory, without a sort: the k-th best value, the value that holds a mass.

A token's depth is (peak - logit) * scale, with scale = 1 / temperature: `reference`'s scaled value, negated. It is
never negative, so that its bits, read as an integer, order as it does: the key. Limits are at most 0x7F7FFFFF, the key
of the largest finite depth: logits of -inf are beyond all of them. Depth and key are monotone in the logit, and every
place computes them alike, so that a token is never on both sides of a threshold.
Device functions only. Must not know where the values come from.
"""

import triton
import triton.language as tl

from kernels.gpu.arithmetic import LOG2_E

LARGEST_SCALE = tl.constexpr(1e38)


@triton.jit
def inverse(temperature):
    """1 / temperature, bounded so that the peak's own depth stays 0 at the least temperatures."""
    return tl.minimum(1.0 / temperature, LARGEST_SCALE)


@triton.jit
def depth_keys(x, peak, scale):
    """(depths, keys) of float32 logits. What is not a number, as rows that pad a graph may hold, is infinitely deep."""
    depth = (peak - x) * scale
    depth = tl.where(depth >= 0.0, depth, float("inf"))
    return depth, depth.to(tl.int32, bitcast=True)


@triton.jit
def amount(source_ptr, num, peak, scale, limit, BY_MASS: tl.constexpr, TILE: tl.constexpr):
    """How many of source[:num], or how much of exp(-depth), have keys of at most `limit`; float32, exact for counts.

    Sums are taken in one fixed order, in which adding a token never makes less: monotone in `limit`.
    """
    total = tl.zeros([TILE], tl.float32)
    for start in range(0, num, TILE):
        i = start + tl.arange(0, TILE)
        x = tl.load(source_ptr + i, mask=i < num, other=float("-inf")).to(tl.float32)
        depth, keys = depth_keys(x, peak, scale)
        if BY_MASS:
            total += tl.where(keys <= limit, tl.exp2(-depth * LOG2_E), 0.0)
        else:
            total += tl.where(keys <= limit, 1.0, 0.0)
    return tl.sum(total, 0)


@triton.jit
def least_limit(source_ptr, num, peak, scale, limit, target, BY_MASS: tl.constexpr, TILE: tl.constexpr):
    """The least key at which `amount` reaches `target` > 0, a key of source[:num]; `limit` where that never happens.

    Bisection of the keys: `amount` is at least the target at `high` and less at `low`. Both ends move on to the next
    key that occurs, so that the number of passes follows the number of different values: some 11 for a row of
    bfloat16, never more than 31.
    """
    low = -1
    high = limit
    while high - low > 1:
        middle = low + (high - low) // 2
        total = tl.zeros([TILE], tl.float32)
        below = tl.full([TILE], -1, tl.int32)
        above = tl.full([TILE], 0x7F7FFFFF, tl.int32)
        for start in range(0, num, TILE):
            i = start + tl.arange(0, TILE)
            x = tl.load(source_ptr + i, mask=i < num, other=float("-inf")).to(tl.float32)
            depth, keys = depth_keys(x, peak, scale)
            inside = keys <= middle
            if BY_MASS:
                total += tl.where(inside, tl.exp2(-depth * LOG2_E), 0.0)
            else:
                total += tl.where(inside, 1.0, 0.0)
            below = tl.where(inside, tl.maximum(below, keys), below)
            above = tl.where(inside, above, tl.minimum(above, keys))
        if tl.sum(total, 0) >= target:
            high = tl.max(below, 0)
        else:
            low = tl.minimum(tl.min(above, 0), high) - 1
    return high


@triton.jit
def gather(
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
    SPAN: tl.constexpr,
    CAPACITY: tl.constexpr,
    TILE: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Write the tokens of a row whose keys are at most `limit`, ids ascending, and their float32 logits, compactly.

    Only spans (SPAN tokens) are read whose own peak is not beyond the limit; spans_ptr [num_spans] holds their list.
    Returns how many tokens were found, which are all of them if it is at most CAPACITY; else the search ends early.
    """
    num_listed = 0
    for start in range(0, num_spans, TILE):
        i = start + tl.arange(0, TILE)
        peaks = tl.load(span_peaks_ptr + i, mask=i < num_spans, other=float("-inf"))
        _, keys = depth_keys(peaks, peak, scale)
        listed = (keys <= limit).to(tl.int32)
        tl.store(spans_ptr + num_listed + tl.cumsum(listed, 0) - 1, i, mask=listed > 0)
        num_listed += tl.sum(listed, 0)
    # What other threads of this program have written is read from here on.
    tl.debug_barrier()
    num_found = 0
    start = 0
    num_slots = num_listed * SPAN
    while (start < num_slots) & (num_found <= CAPACITY):
        i = start + tl.arange(0, WIDE)
        spans = tl.load(spans_ptr + i // SPAN, mask=i < num_slots, other=0)
        tokens = spans * SPAN + i % SPAN
        x = tl.load(row_ptr + tokens, mask=(i < num_slots) & (tokens < vocab), other=float("-inf")).to(tl.float32)
        _, keys = depth_keys(x, peak, scale)
        found = (keys <= limit).to(tl.int32)
        places = num_found + tl.cumsum(found, 0) - 1
        kept = (found > 0) & (places < CAPACITY)
        tl.store(ids_ptr + places, tokens, mask=kept)
        tl.store(values_ptr + places, x, mask=kept)
        num_found += tl.sum(found, 0)
        start += WIDE
    tl.debug_barrier()
    return num_found
