"""Causal attention over a paged cache for queries of any length: prompts, chunks of prompts, and mixed batches.

One program does a tile of rows, which are a few consecutive query tokens of a sequence times the query heads that share
one key/value head, so that the matrix units see 128 rows and each byte of K and V that is read serves all of them. It
goes over the keys in tiles with the running softmax of Dao et al. 2022, in base 2. Keys that every row sees need no
mask and are most of the work; the diagonal and the edge of a window are done by the same code with a mask.

Must not know the engine, nor how the query lengths are distributed: only their sum and number are known on the host.
"""

import functools
from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.arithmetic import LOG2_E, e4m3_to_float16, soft_capped
from kernels.gpu.cases import CompileCase
from kernels.gpu.hardware import Hardware
from kernels.gpu.prefill_tiling import HOPPER_ALTERNATIVES, Tiling, tiling_for
from kernels.interface import AttentionForm

# Stands for -inf in the running maximum: finite, so that no row that has seen no key yet computes inf - inf.
_LOWEST = tl.constexpr(-1.0e30)
# Sequences that are searched at once.
_SEARCHED = tl.constexpr(256)


@triton.jit
def _find_tile(starts_ptr, num_sequences, tile, TOKENS: tl.constexpr):
    """The sequence whose tile this is, the tile's first token in it, and where its queries begin and end.

    Sequence s is given the tiles from (starts[s] - starts[0]) // TOKENS + s on, which is at least as many as it needs;
    a tile beyond its needs begins at or after its end. All sequences are compared at once: one load's latency, where a
    binary search would have one per step.
    """
    first = tl.load(starts_ptr)
    found = 0
    for begin in range(0, num_sequences, _SEARCHED):
        s = begin + tl.arange(0, _SEARCHED)
        starts = tl.load(starts_ptr + s, mask=s < num_sequences, other=0) - first
        found += tl.sum(((starts // TOKENS + s <= tile) & (s < num_sequences)).to(tl.int32), 0)
    sequence = found - 1
    start = tl.load(starts_ptr + sequence)
    token = (tile - ((start - first) // TOKENS + sequence)) * TOKENS
    return sequence, token, start, tl.load(starts_ptr + sequence + 1)


@triton.jit
def _rows_of_tile(
    start, token, num_queries, column,
    GROUP: tl.constexpr, ROWS: tl.constexpr, HEADS: tl.constexpr, HEAD_TILES: tl.constexpr, zero=0
):  # fmt: skip
    """Each row's token in the batch (int64), its query head, and whether there is such a row; `zero` is 0."""
    r = tl.arange(0, ROWS) + zero
    row_token = token + r // HEADS
    group_head = (column % HEAD_TILES) * HEADS + r % HEADS
    is_row = (r < ROWS // HEADS * HEADS) & (row_token < num_queries) & (group_head < GROUP)
    return (start + row_token).to(tl.int64), column // HEAD_TILES * GROUP + group_head, is_row


@triton.jit
def _blocks_of(table_ptr, position, end, i, KEYS: tl.constexpr, BLOCK_SIZE: tl.constexpr):
    """The ids of the blocks that hold the keys of the tile at `position`, as a tuple.

    Scalars, where the tile is made of whole blocks or lies in one: they cost no registers. Else one tensor [KEYS].
    """
    if KEYS % BLOCK_SIZE == 0 or BLOCK_SIZE % KEYS == 0:
        blocks = ()
        for part in tl.static_range(max(KEYS // BLOCK_SIZE, 1)):
            at = position + part * BLOCK_SIZE
            blocks = blocks + (tl.load(table_ptr + at // BLOCK_SIZE, mask=at < end, other=0),)  # type: ignore[assignment] # noqa: RUF005
    else:
        each = tl.load(table_ptr + (position + i) // BLOCK_SIZE, mask=position + i < end, other=0)
        blocks = (each,)  # type: ignore[assignment]
    return blocks


@triton.jit
def _rows_of(blocks, position, i, KEYS: tl.constexpr, BLOCK_SIZE: tl.constexpr, BLOCK_ROWS: tl.constexpr):
    """Where in the cache the tile's keys lie, int64, in rows of D elements; a block has BLOCK_ROWS of them."""
    offset = i % BLOCK_SIZE if KEYS % BLOCK_SIZE == 0 else (position + i) % BLOCK_SIZE
    rows = blocks[0].to(tl.int64) * BLOCK_ROWS + offset
    for part in tl.static_range(1, len(blocks)):
        rows = tl.where(i >= part * BLOCK_SIZE, blocks[part].to(tl.int64) * BLOCK_ROWS + offset, rows)
    return rows


@triton.jit
def _load_tile(pointers, in_range, in_head, MASKED: tl.constexpr, PADDED: tl.constexpr):
    """Keys or values of a tile; 0 past the end, where slots hold anything: a weight of 0 does not undo a NaN."""
    if MASKED:
        tile = tl.load(pointers, mask=in_range[:, None] & in_head[None, :], other=0)
    elif PADDED:
        tile = tl.load(pointers, mask=in_head[None, :], other=0)
    else:
        tile = tl.load(pointers)
    return tile


@triton.jit
def _as_operand(x, like, NATIVE: tl.constexpr):
    """What was loaded from a cache as an operand of the matrix units; bytes are e4m3, NATIVE where that is a type."""
    if x.dtype == tl.uint8:
        x = x.to(tl.float8e4nv, bitcast=True) if NATIVE else e4m3_to_float16(x)
    return x.to(like.dtype)


@triton.jit
def _attend(
    accumulator, total, peak, q, row_position, k_ptr, v_ptr, table_ptr, begin, end, scale_log2, scale, cap,
    D: tl.constexpr, D_PADDED: tl.constexpr, HKV: tl.constexpr, BLOCK_SIZE: tl.constexpr, KEYS: tl.constexpr,
    NATIVE: tl.constexpr, WINDOW: tl.constexpr, CAPPED: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Take the keys from `begin`, a multiple of KEYS, to `end` into the running softmax.

    Without MASKED every row sees them all, and `end` is a multiple of KEYS. The ids of the next tile's blocks are
    loaded one iteration ahead and carried: if a load's address hung on another load of the same iteration, the
    compiler would give half its buffers to the ids.
    """
    i = tl.arange(0, KEYS)
    d = tl.arange(0, D_PADDED)
    blocks = _blocks_of(table_ptr, begin, end, i, KEYS, BLOCK_SIZE)
    for position in range(begin, end, KEYS):
        rows = _rows_of(blocks, position, i, KEYS, BLOCK_SIZE, HKV * BLOCK_SIZE)
        offsets = rows[:, None] * D + d[None, :]
        in_range = position + i < end
        k = _load_tile(k_ptr + offsets, in_range, d < D, MASKED, D != D_PADDED)
        score = tl.dot(q, tl.trans(_as_operand(k, q, NATIVE)), input_precision="ieee")
        if CAPPED:
            score = soft_capped(score * scale, cap) * LOG2_E
        if MASKED:
            key = position + i
            # A row of the batch never sees past `end`; one past the queries does, zeros, and is not stored.
            seen = key[None, :] <= row_position[:, None]
            if WINDOW > 0:
                seen = seen & (key[None, :] > row_position[:, None] - WINDOW)
            score = tl.where(seen, score, -float("inf"))
        if CAPPED:
            new_peak = tl.maximum(peak, tl.max(score, 1))
            weight = tl.exp2(score - new_peak[:, None])
        else:
            new_peak = tl.maximum(peak, tl.max(score, 1) * scale_log2)
            weight = tl.exp2(score * scale_log2 - new_peak[:, None])
        shrink = tl.exp2(peak - new_peak)
        peak = new_peak
        total = total * shrink + tl.sum(weight, 1)
        v = _load_tile(v_ptr + offsets, in_range, d < D, MASKED, D != D_PADDED)
        accumulator = accumulator * shrink[:, None]
        accumulator = tl.dot(weight.to(q.dtype), _as_operand(v, q, NATIVE), accumulator, input_precision="ieee")
        blocks = _blocks_of(table_ptr, position + KEYS, end, i, KEYS, BLOCK_SIZE)
    return accumulator, total, peak


@triton.jit(
    do_not_specialize=["num_sequences", "table_stride"],
    do_not_specialize_on_alignment=["sinks_ptr", "starts_ptr", "lengths_ptr", "table_ptr"],
)
def _prefill_attention(
    q_ptr, k_ptr, v_ptr, out_ptr, sinks_ptr, starts_ptr, lengths_ptr, table_ptr, num_sequences, scale, scale_log2,
    cap, value_scale, q_token_stride, q_head_stride, out_stride, table_stride,
    GROUP: tl.constexpr, HKV: tl.constexpr, D: tl.constexpr, D_PADDED: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    ROWS: tl.constexpr, HEADS: tl.constexpr, HEAD_TILES: tl.constexpr, KEYS: tl.constexpr, NATIVE: tl.constexpr,
    WINDOW: tl.constexpr, CAPPED: tl.constexpr, HAS_SINKS: tl.constexpr,
):  # fmt: skip
    """One tile: ROWS // HEADS tokens of a sequence, and HEADS of the GROUP query heads of one key/value head.

    The later tiles of a sequence, which see the most keys, are the first programs; the heads of a tile are neighbours,
    so that at any time all heads' programs read the same stretch of the caches.
    """
    TOKENS: tl.constexpr = ROWS // HEADS
    num_columns = HKV * HEAD_TILES
    tile = tl.num_programs(0) // num_columns - 1 - tl.program_id(0) // num_columns
    column = tl.program_id(0) % num_columns
    kv_head = column // HEAD_TILES
    sequence, token, start, stop = _find_tile(starts_ptr, num_sequences, tile, TOKENS)
    num_queries = stop - start
    if token >= num_queries:
        return
    length = tl.load(lengths_ptr + sequence)
    d = tl.arange(0, D_PADDED)
    token_index, head, is_row = _rows_of_tile(start, token, num_queries, column, GROUP, ROWS, HEADS, HEAD_TILES)
    q_offsets = (token_index * q_token_stride + head * q_head_stride)[:, None] + d[None, :]
    q = tl.load(q_ptr + q_offsets, mask=is_row[:, None] & (d < D)[None, :], other=0.0)

    # Query i stands at position length - num_queries + i and sees the keys up to it.
    first_position = length - num_queries + token
    row_position = first_position + tl.arange(0, ROWS) // HEADS
    end = tl.minimum(first_position + TOKENS, length)
    seen_by_all = (first_position + 1) // KEYS * KEYS
    kv_head_offset = kv_head.to(tl.int64) * (BLOCK_SIZE * D)
    table_row = table_ptr + sequence.to(tl.int64) * table_stride
    peak = tl.full([ROWS], _LOWEST, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    accumulator = tl.zeros([ROWS, D_PADDED], tl.float32)
    begin = 0
    if WINDOW > 0:
        # The first row's window opens the tile's keys; where the last row's begins, all rows see every key.
        begin = tl.maximum(first_position - WINDOW + 1, 0) // KEYS * KEYS
        whole = tl.cdiv(tl.maximum(first_position + TOKENS - WINDOW, 0), KEYS) * KEYS
        whole = tl.minimum(whole, seen_by_all)
        accumulator, total, peak = _attend(
            accumulator, total, peak, q, row_position, k_ptr + kv_head_offset, v_ptr + kv_head_offset, table_row,
            begin, whole, scale_log2, scale, cap, D, D_PADDED, HKV, BLOCK_SIZE, KEYS, NATIVE, WINDOW, CAPPED, True,
        )  # fmt: skip
        begin = whole
    accumulator, total, peak = _attend(
        accumulator, total, peak, q, row_position, k_ptr + kv_head_offset, v_ptr + kv_head_offset, table_row,
        begin, seen_by_all, scale_log2, scale, cap,
        D, D_PADDED, HKV, BLOCK_SIZE, KEYS, NATIVE, WINDOW, CAPPED, False,
    )  # fmt: skip
    accumulator, total, peak = _attend(
        accumulator, total, peak, q, row_position, k_ptr + kv_head_offset, v_ptr + kv_head_offset, table_row,
        seen_by_all, end, scale_log2, scale, cap,
        D, D_PADDED, HKV, BLOCK_SIZE, KEYS, NATIVE, WINDOW, CAPPED, True,
    )  # fmt: skip
    # The rows' indices again, from a second load, which the compiler cannot know to give the same: kept through the
    # loops, they would take up to 60 of the registers that the loops need, and some forms would spill.
    again = tl.load(starts_ptr + sequence, volatile=True)
    token_index, head, is_row = _rows_of_tile(
        again, token, num_queries, column, GROUP, ROWS, HEADS, HEAD_TILES, again - start
    )  # fmt: skip
    if HAS_SINKS:
        # One more score without a value; it may be far above all others, so the peak is taken anew.
        sink = tl.load(sinks_ptr + head, mask=is_row, other=0.0).to(tl.float32) * LOG2_E
        new_peak = tl.maximum(peak, sink)
        shrink = tl.exp2(peak - new_peak)
        total = total * shrink + tl.exp2(sink - new_peak)
        accumulator = accumulator * shrink[:, None]
    # A row past the queries may have seen nothing, and so has a query of a sequence without keys, which becomes 0.
    result = accumulator * (value_scale / tl.where(total == 0.0, 1.0, total))[:, None]
    out_offsets = (token_index * out_stride + head * D)[:, None] + d[None, :]
    tl.store(out_ptr + out_offsets, result.to(out_ptr.dtype.element_ty), mask=is_row[:, None] & (d < D)[None, :])


def prefill_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    query_start_loc: Tensor,
    seq_lens: Tensor,
    block_table: Tensor,
    form: AttentionForm,
    hardware: Hardware,
    *,
    out: Tensor | None = None,
    tiling: Tiling | None = None,
) -> Tensor:
    """See `reference.paged_attention`; returns [T, H * D] of query's type. form.scale must be positive.

    query: [T, H, D], its tokens and heads possibly strided. Caches: [blocks, Hkv, block_size, D], contiguous, of
    query's type or e4m3. query_start_loc [S + 1], seq_lens [S], block_table [S, max_blocks]: int32, on the device.
    Only tokens query_start_loc[0] to query_start_loc[S] are computed; where those are not all, `out` [T, H * D] must be
    given, and its other rows are left as they are. tiling: instead of the table's, for benchmarks.
    """
    num_tokens, num_heads, head_dim = query.shape
    num_kv_heads, block_size = key_cache.shape[1:3]
    num_sequences = seq_lens.shape[0]
    if out is None:
        out = torch.empty(num_tokens, num_heads * head_dim, dtype=query.dtype, device=query.device)
    if num_tokens == 0 or num_sequences == 0:
        return out
    if key_cache.element_size() == 1:
        # Bytes: a masked load of e4m3 has no zero to fill in.
        key_cache, value_cache = key_cache.view(torch.uint8), value_cache.view(torch.uint8)
    padded = max(16, 1 << (head_dim - 1).bit_length())  # triton's own takes the host 2 us a call
    if tiling is None:
        is_plain = not form.window and not form.soft_cap
        tiling = tiling_for(hardware, padded, query.element_size(), key_cache.element_size(), is_plain=is_plain)
    group = num_heads // num_kv_heads
    heads = min(group, tiling.rows)
    head_tiles = -(-group // heads)
    num_tiles = num_tokens // (tiling.rows // heads) + num_sequences
    scale = form.scale * form.key_scale
    _prefill_attention[(num_tiles * num_kv_heads * head_tiles,)](
        query, key_cache, value_cache, out, query if form.sinks is None else form.sinks, query_start_loc, seq_lens,
        block_table, num_sequences, scale, scale * LOG2_E.value, form.soft_cap, form.value_scale,
        query.stride(0), query.stride(1), out.stride(0), block_table.stride(0),
        GROUP=group, HKV=num_kv_heads, D=head_dim, D_PADDED=padded, BLOCK_SIZE=block_size, ROWS=tiling.rows,
        HEADS=heads, HEAD_TILES=head_tiles, KEYS=tiling.keys, NATIVE=hardware.has_float8,
        WINDOW=form.window, CAPPED=form.soft_cap != 0, HAS_SINKS=form.sinks is not None,
        num_warps=tiling.num_warps, num_stages=tiling.num_stages,
    )  # fmt: skip
    return out


def compile_cases(hardware: Hardware) -> Iterator[CompileCase]:
    """Llama's heads at the head sizes that the table tells apart, an e4m3 cache, gpt-oss's forms together, MHA."""
    plain = AttentionForm(scale=0.1)
    sinks = torch.empty(64, device="meta")
    dtype, float8 = torch.bfloat16, torch.float8_e4m3fn
    shapes = (
        ("bfloat16 128", (32, 8, 128), dtype, dtype, plain),
        ("bfloat16 128, blocks of 48", (28, 4, 128), dtype, dtype, plain),
        ("bfloat16 64", (32, 8, 64), dtype, dtype, plain),
        ("bfloat16 80", (32, 8, 80), dtype, dtype, plain),
        ("bfloat16 256", (16, 8, 256), dtype, dtype, plain),
        ("bfloat16 128, e4m3 cache", (32, 8, 128), dtype, float8, plain),
        ("bfloat16 64, window, cap and sinks", (64, 8, 64), dtype, dtype, AttentionForm(0.1, 128, 30.0, sinks)),
        ("bfloat16 128, no groups", (32, 32, 128), dtype, dtype, plain),
        ("float32 128", (32, 8, 128), torch.float32, torch.float32, plain),
    )
    for name, heads, query_dtype, cache_dtype, form in shapes:
        block_size = 48 if name.endswith("48") else 32
        launch = functools.partial(_compile_one, heads, query_dtype, cache_dtype, form, hardware, block_size=block_size)
        yield CompileCase(name, launch)
    if hardware.capability == 90:
        for tiling in HOPPER_ALTERNATIVES:
            launch = functools.partial(_compile_one, (32, 8, 128), dtype, dtype, plain, hardware, tiling)
            yield CompileCase(f"bfloat16 128, {tiling.rows}x{tiling.keys}, {tiling.num_warps} warps", launch)


def _compile_one(
    heads: tuple[int, int, int],
    query_dtype: torch.dtype,
    cache_dtype: torch.dtype,
    form: AttentionForm,
    hardware: Hardware,
    tiling: Tiling | None = None,
    block_size: int = 32,
) -> None:
    num_heads, num_kv_heads, head_dim = heads
    query = torch.empty(100, num_heads, head_dim, dtype=query_dtype, device="meta")
    cache = torch.empty(100, num_kv_heads, block_size, head_dim, dtype=cache_dtype, device="meta")
    starts, lengths = (torch.empty(size, dtype=torch.int32, device="meta") for size in (6, 5))
    table = torch.empty(5, 24, dtype=torch.int32, device="meta")
    prefill_attention(query, cache, cache, starts, lengths, table, form, hardware, tiling=tiling)
