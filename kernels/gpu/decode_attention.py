"""Attention of one query token per sequence over the paged cache, its keys split over programs.

For a sequence of n keys and a head: softmax(scale * q k^T) v, read through the block table, with window, soft cap and
sinks as `reference.paged_attention` defines them. The time is that of reading K and V once, 2 * n * D elements per KV
head; so all query heads of a KV head share a program, and their scores are a matrix product, padded to 16 rows, which
costs nothing while the memory is the limit.

Caches here are [blocks, Hkv, block_size, D] and contiguous: a block of one head is one run of memory.

Splits follow Flash-Decoding (Dao et al. 2023): each program keeps a running maximum m, the sum of exp2(score - m) and
the weighted values, and a second kernel joins them. A row's result depends on its own keys and on the number of splits,
which the size of the batch fixes, and on nothing else of the batch.

Must not know sequences, the engine, or lengths on the host: bounds are read on the device, so that a CUDA graph of a
batch bucket serves every length.
"""

import functools
from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.arithmetic import LOG2_E, e4m3_to_float16, soft_capped
from kernels.gpu.cases import CompileCase
from kernels.gpu.decode_tuning import MAX_SPLITS, number_of_splits, tiling
from kernels.gpu.hardware import Hardware
from kernels.interface import AttentionForm

# Splits that the joining kernel reads at a time.
_SPLITS_AT_ONCE = 16
# Larger than any position: the window of a layer without one.
_NO_WINDOW = 2**30


@triton.jit
def _with_sink(sinks_ptr, heads, is_head, m, total):
    """(peak, total', m's factor): maximum and sum with the sink's score among them; the maximum is finite.

    A row without keys has m = -inf and total = 0; its total' is 0 or the sink's, never NaN.
    """
    peak = m
    if sinks_ptr is not None:
        sink = tl.load(sinks_ptr + heads, mask=is_head, other=0.0) * LOG2_E
        peak = tl.maximum(m, sink)
    peak = tl.where(peak == float("-inf"), 0.0, peak)
    factor = tl.exp2(m - peak)
    total = total * factor
    if sinks_ptr is not None:
        total += tl.exp2(sink - peak)
    return peak, total, factor


@triton.jit
def _e4m3_pair(words, COMPUTE: tl.constexpr, HAS_FLOAT8: tl.constexpr):
    """The values of the low and of the high e4m3 codes of 16-bit words, by the hardware's conversion if it has one."""
    low, high = words.to(tl.uint8), (words >> 8).to(tl.uint8)
    if HAS_FLOAT8:
        return low.to(tl.float8e4nv, bitcast=True).to(COMPUTE), high.to(tl.float8e4nv, bitcast=True).to(COMPUTE)
    return e4m3_to_float16(low).to(COMPUTE), e4m3_to_float16(high).to(COMPUTE)


@triton.jit(
    do_not_specialize=["table_stride", "window"],
    do_not_specialize_on_alignment=["table_ptr", "lens_ptr"],
)
def _decode_attention(
    query_ptr,
    key_ptr,
    value_ptr,
    table_ptr,
    lens_ptr,
    sinks_ptr,
    out_ptr,
    stats_ptr,
    score_scale,
    soft_cap,
    value_scale,
    query_stride,
    head_stride,
    out_stride,
    table_stride,
    window,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE_HEADS: tl.constexpr,
    TILE_SIZE: tl.constexpr,
    TILE_KEYS: tl.constexpr,
    COMPUTE: tl.constexpr,
    IS_E4M3: tl.constexpr,
    HAS_FLOAT8: tl.constexpr,
    IS_CAPPED: tl.constexpr,
    IS_WHOLE: tl.constexpr,
):
    """One tile of the query heads of one KV head, one split of the keys, one sequence.

    `IS_WHOLE`: there is one split and the result goes to out [S, H * D]. Else out is float32 [S, H, splits, D], sums of
    values not yet divided, and stats float32 [2, S, H, splits], maxima and sums; a split without keys writes no values.
    """
    GROUP: tl.constexpr = HEADS // KV_HEADS
    TILES: tl.constexpr = (GROUP + TILE_HEADS - 1) // TILE_HEADS
    kv_head = tl.program_id(0) // TILES
    split, num_splits = tl.program_id(1), tl.num_programs(1)
    sequence = tl.program_id(2).to(tl.int64)

    in_group = (tl.program_id(0) % TILES) * TILE_HEADS + tl.arange(0, TILE_HEADS)
    is_head = in_group < GROUP
    heads = kv_head * GROUP + in_group
    lane = tl.arange(0, TILE_KEYS)

    # A window starts anywhere, not at a tile's edge: then no tile has keys before it, and none needs a mask for them.
    seq_len = tl.load(lens_ptr + sequence)
    first = tl.maximum(seq_len - window, 0)
    tiles = tl.cdiv(seq_len - first, TILE_KEYS)
    per_split = tl.cdiv(tiles, num_splits) * TILE_KEYS
    start = first + split * per_split
    end = tl.minimum(start + per_split, seq_len)

    # An e4m3 cache is read as pairs of codes, so that what is loaded, staged and transposed are 16-bit words: WORDS per
    # head. Its even and odd dimensions are then two tiles each of Q, K and V.
    PACKED: tl.constexpr = 2 if IS_E4M3 else 1
    WORDS: tl.constexpr = SIZE // PACKED
    word = tl.arange(0, TILE_SIZE // PACKED)
    is_word = word < WORDS
    query_ptr += sequence * query_stride
    query_at = heads[:, None] * head_stride + word[None, :] * PACKED
    is_query = is_head[:, None] & is_word[None, :]
    query = tl.load(query_ptr + query_at, mask=is_query, other=0.0).to(tl.float32)
    if IS_E4M3:
        odd_query = tl.load(query_ptr + query_at + 1, mask=is_query, other=0.0).to(tl.float32)
        # A bfloat16 query may exceed float16, in which e4m3 is exact: its rows go in as fractions of their largest.
        size = tl.maximum(tl.max(tl.abs(query), 1), tl.max(tl.abs(odd_query), 1))
        size = tl.where(size == 0.0, 1.0, size)[:, None]
        query, odd_query, score_scale = query / size, (odd_query / size).to(COMPUTE), score_scale * size
        odd_values = tl.zeros([TILE_HEADS, TILE_SIZE // PACKED], tl.float32)
    query = query.to(COMPUTE)
    m = tl.full([TILE_HEADS], float("-inf"), tl.float32)
    # With 16 rows the warps stand side by side along the keys, and a sum over them costs three barriers: then each
    # column of the tile has a sum of its own, and they are added up after the loop.
    COLUMNS: tl.constexpr = TILE_KEYS if TILE_HEADS == 16 else 1
    total = tl.zeros([TILE_HEADS, COLUMNS], tl.float32)
    values = tl.zeros([TILE_HEADS, TILE_SIZE // PACKED], tl.float32)

    table_ptr += sequence * table_stride
    key_ptr += kv_head * (BLOCK_SIZE * WORDS)
    value_ptr += kv_head * (BLOCK_SIZE * WORDS)
    # The ids of a tile's blocks are loaded while the tile before it is worked on. Were they loaded with the tile, the
    # software pipeline would count two loads in a row and keep half as many tiles under way.
    block = tl.load(table_ptr + (start + lane) // BLOCK_SIZE, mask=start + lane < end, other=0)
    for at in range(start, end, TILE_KEYS):
        position = at + lane
        is_key = position < end
        run = block.to(tl.int64) * (KV_HEADS * BLOCK_SIZE * WORDS) + (position % BLOCK_SIZE) * WORDS
        offset = run[:, None] + word[None, :]
        inside = is_key[:, None]
        if SIZE < TILE_SIZE:
            inside = inside & is_word[None, :]
        key = tl.load(key_ptr + offset, mask=inside, other=0)
        if IS_E4M3:
            key, odd_key = _e4m3_pair(key, COMPUTE, HAS_FLOAT8)
            scores = tl.dot(query, tl.trans(key), input_precision="ieee")
            scores = tl.dot(odd_query, tl.trans(odd_key), scores, input_precision="ieee")
        else:
            scores = tl.dot(query, tl.trans(key.to(COMPUTE)), input_precision="ieee")
        scores = scores * score_scale
        if IS_CAPPED:
            scores = soft_capped(scores, soft_cap) * LOG2_E
        scores = tl.where(is_key[None, :], scores, float("-inf"))
        new_m = tl.maximum(m, tl.max(scores, 1))
        weights = tl.exp2(scores - new_m[:, None])
        factor = tl.exp2(m - new_m)[:, None]
        total = total * factor + (weights if COLUMNS > 1 else tl.sum(weights, 1)[:, None])
        m = new_m
        weights = weights.to(COMPUTE)
        value = tl.load(value_ptr + offset, mask=inside, other=0)
        if IS_E4M3:
            value, odd_value = _e4m3_pair(value, COMPUTE, HAS_FLOAT8)
            values = tl.dot(weights, value, values * factor, input_precision="ieee")
            odd_values = tl.dot(weights, odd_value, odd_values * factor, input_precision="ieee")
        else:
            values = tl.dot(weights, value.to(COMPUTE), values * factor, input_precision="ieee")
        following = position + TILE_KEYS
        block = tl.load(table_ptr + following // BLOCK_SIZE, mask=following < end, other=0)

    total = tl.sum(total, 1)
    if IS_E4M3:
        values = tl.interleave(values, odd_values)
    d = tl.arange(0, TILE_SIZE)
    is_dim = d < SIZE
    inside = is_head[:, None] & is_dim[None, :]
    if IS_WHOLE:
        _, total, factor = _with_sink(sinks_ptr, heads, is_head, m, total)
        values = values * (factor * value_scale / tl.where(total == 0.0, 1.0, total))[:, None]
        offset = sequence * out_stride + heads[:, None] * SIZE + d[None, :]
        tl.store(out_ptr + offset, values.to(out_ptr.dtype.element_ty), mask=inside)
    else:
        row = (sequence * HEADS + heads) * num_splits + split
        tl.store(stats_ptr + row, m, mask=is_head)
        tl.store(stats_ptr + tl.num_programs(2).to(tl.int64) * HEADS * num_splits + row, total, mask=is_head)
        if start < end:
            tl.store(out_ptr + row[:, None] * SIZE + d[None, :], values, mask=inside)


@triton.jit(do_not_specialize=["num_splits"])
def _join_splits(
    partial_ptr,
    stats_ptr,
    sinks_ptr,
    out_ptr,
    value_scale,
    out_stride,
    num_splits,
    HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    TILE_SIZE: tl.constexpr,
    MOST: tl.constexpr,
    AT_ONCE: tl.constexpr,
):
    """One head of one sequence: sum of exp2(m_i - m) * values_i over sum of exp2(m_i - m) * sums_i and the sink's.

    Reads the values of those splits only that had keys: the others wrote none.
    """
    head, sequence = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row = (sequence * HEADS + head) * num_splits
    num_stats = tl.num_programs(1).to(tl.int64) * HEADS * num_splits
    every = tl.arange(0, MOST)
    m = tl.load(stats_ptr + row + every, mask=every < num_splits, other=float("-inf"))
    sums = tl.load(stats_ptr + num_stats + row + every, mask=every < num_splits, other=0.0)
    top = tl.max(m, 0)
    safe = tl.where(top == float("-inf"), 0.0, top)
    peak, total, _ = _with_sink(sinks_ptr, head, True, top, tl.sum(sums * tl.exp2(m - safe), 0))

    d = tl.arange(0, TILE_SIZE)
    values = tl.zeros([TILE_SIZE], tl.float32)
    for at in range(0, num_splits, AT_ONCE):
        i = at + tl.arange(0, AT_ONCE)
        some = tl.load(stats_ptr + row + i, mask=i < num_splits, other=float("-inf"))
        has_keys = some > float("-inf")
        partial = tl.load(
            partial_ptr + (row + i)[:, None] * SIZE + d[None, :],
            mask=has_keys[:, None] & (d < SIZE)[None, :],
            other=0.0,
        )
        values += tl.sum(partial * tl.exp2(some - peak)[:, None], 0)
    values = values * (value_scale / tl.where(total == 0.0, 1.0, total))
    tl.store(out_ptr + sequence * out_stride + head * SIZE + d, values.to(out_ptr.dtype.element_ty), mask=d < SIZE)


def decode_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_table: Tensor,
    seq_lens: Tensor,
    form: AttentionForm,
    hardware: Hardware,
    out: Tensor | None = None,
) -> Tensor:
    """Attention of query [S, H, D], one token per sequence, over the first seq_lens[s] keys; returns [S, H * D].

    query: bfloat16, float16 or float32; tokens and heads may be strided, dimensions not. Caches: contiguous
    [blocks, Hkv, block_size, D], of query's type or torch.float8_e4m3fn; H is a multiple of Hkv. block_table: int32
    [S, max_blocks], its rows possibly strided; only entries that hold keys of the window are read. seq_lens: int32 [S];
    a row of length 0 is padding and becomes 0. out: [S, H * D] of query's type, its rows possibly strided.

    Reads no value on the host, so that it can be captured: the grid and the number of splits depend on S and shapes.
    """
    num_sequences, num_heads, size = query.shape
    num_kv_heads, block_size = key_cache.shape[1:3]
    if out is None:
        out = torch.empty(num_sequences, num_heads * size, dtype=query.dtype, device=query.device)
    if num_sequences == 0:
        return out
    shape = tiling(hardware, num_heads // num_kv_heads, size, key_cache.dtype)
    # Not triton.cdiv on the host: 2 us a call.
    num_tiles = num_kv_heads * -(-(num_heads // num_kv_heads) // shape.tile_heads)
    splits = number_of_splits(hardware, num_sequences, num_tiles, -(-form.window // shape.tile_keys))
    compute = _type_of_products(query.dtype, key_cache.dtype)
    is_e4m3 = key_cache.dtype == torch.float8_e4m3fn
    if is_e4m3:
        key_cache, value_cache = key_cache.view(torch.int16), value_cache.view(torch.int16)
    target, stats = out, None
    if splits > 1:
        target = torch.empty(num_sequences, num_heads, splits, size, dtype=torch.float32, device=query.device)
        stats = torch.empty(2, num_sequences, num_heads, splits, dtype=torch.float32, device=query.device)
    _decode_attention[(num_tiles, splits, num_sequences)](
        query,
        key_cache,
        value_cache,
        block_table,
        seq_lens,
        form.sinks if splits == 1 else None,
        target,
        stats,
        form.scale * form.key_scale * (1.0 if form.soft_cap else LOG2_E.value),
        float(form.soft_cap),
        float(form.value_scale),
        query.stride(0),
        query.stride(1),
        out.stride(0),
        block_table.stride(0),
        form.window or _NO_WINDOW,
        HEADS=num_heads,
        KV_HEADS=num_kv_heads,
        SIZE=size,
        BLOCK_SIZE=block_size,
        TILE_HEADS=shape.tile_heads,
        TILE_SIZE=shape.tile_size,
        TILE_KEYS=shape.tile_keys,
        COMPUTE=compute,
        IS_E4M3=is_e4m3,
        HAS_FLOAT8=hardware.has_float8,
        IS_CAPPED=bool(form.soft_cap),
        IS_WHOLE=splits == 1,
        num_warps=shape.num_warps,
        num_stages=shape.num_stages,
    )
    if splits > 1:
        _join_splits[(num_heads, num_sequences)](
            target,
            stats,
            form.sinks,
            out,
            float(form.value_scale),
            out.stride(0),
            splits,
            HEADS=num_heads,
            SIZE=size,
            TILE_SIZE=shape.tile_size,
            MOST=MAX_SPLITS,
            AT_ONCE=_SPLITS_AT_ONCE,
            num_warps=4,
        )
    return out


def _type_of_products(query_dtype: torch.dtype, cache_dtype: torch.dtype) -> tl.dtype:
    """float32 queries stay so; an e4m3 cache is multiplied in float16, where it is exact, others in their own type."""
    if query_dtype == torch.float32:
        return tl.float32
    return tl.bfloat16 if cache_dtype == torch.bfloat16 else tl.float16


def compile_cases(hardware: Hardware) -> Iterator[CompileCase]:
    """Head sizes, types and forms that the configurations tell apart; 256 sequences are not split, 4 are."""
    bf16, e4m3 = torch.bfloat16, torch.float8_e4m3fn
    full = AttentionForm(0.1, window=4096, soft_cap=30.0, sinks=torch.empty(64, device="meta"))
    plain = AttentionForm(0.1)
    for name, num_sequences, heads, size, dtype, form in (
        ("bfloat16 D 64", 256, (32, 8), 64, bf16, plain),
        ("bfloat16 D 80", 256, (32, 32), 80, bf16, plain),
        ("bfloat16 D 128", 256, (32, 8), 128, bf16, plain),
        ("bfloat16 D 256", 256, (16, 8), 256, bf16, plain),
        ("e4m3 D 128", 256, (32, 8), 128, e4m3, plain),
        ("bfloat16 D 64, window, cap, sinks", 256, (64, 8), 64, bf16, full),
        ("bfloat16 D 128, 64 heads per KV head", 256, (64, 1), 128, bf16, plain),
        ("bfloat16 D 256, 64 heads per KV head", 256, (64, 1), 256, bf16, plain),
        ("float32 D 128", 256, (32, 8), 128, torch.float32, plain),
        ("bfloat16 D 128, split", 4, (32, 8), 128, bf16, plain),
        ("e4m3 D 256, split, window, cap, sinks", 4, (64, 8), 256, e4m3, full),
    ):
        num_heads, num_kv_heads = heads
        query_dtype = bf16 if dtype == e4m3 else dtype
        qkv = torch.empty(num_sequences, num_heads + 2 * num_kv_heads, size, dtype=query_dtype, device="meta")
        cache = torch.empty(1024, num_kv_heads, 16, size, dtype=dtype, device="meta")
        table = torch.empty(num_sequences, 512, dtype=torch.int32, device="meta")
        launch = functools.partial(decode_attention, qkv[:, :num_heads], cache, cache, table, table[:, 0])
        yield CompileCase(name, functools.partial(launch, form, hardware))
