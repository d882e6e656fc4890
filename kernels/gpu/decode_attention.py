"""Attention of one query token per sequence over the paged cache, its keys split over programs.

For a sequence of n keys and a head: softmax(scale * q k^T) v, read through the block table, with window, soft cap and
sinks as `reference.paged_attention` defines them. The time is that of reading K and V once, 2 * n * D elements per KV
head; so all query heads of a KV head share a program, and their scores are a matrix product, padded to 16 rows, which
costs nothing while the memory is the limit.

Caches here are [blocks, Hkv, block_size, D] and contiguous: a block of one head is one run of memory.

Splits follow Flash-Decoding (Dao et al. 2023): each program keeps a running maximum m, a sum l of exp2(score - m) and
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
def _with_sink(sinks_ptr, heads, is_head, m, l):
    """(m', l', m's factor): maximum and sum with the sink's score among them; the maximum is finite.

    A row without keys has m = -inf and l = 0; its l' is 0 or the sink's, never NaN.
    """
    peak = m
    if sinks_ptr is not None:
        sink = tl.load(sinks_ptr + heads, mask=is_head, other=0.0) * LOG2_E
        peak = tl.maximum(m, sink)
    peak = tl.where(peak == float("-inf"), 0.0, peak)
    factor = tl.exp2(m - peak)
    l = l * factor
    if sinks_ptr is not None:
        l += tl.exp2(sink - peak)
    return peak, l, factor


@triton.jit(do_not_specialize=["table_stride", "window"])
def _attend(
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
    IS_CAPPED: tl.constexpr,
    IS_WHOLE: tl.constexpr,
):
    """One tile of the query heads of one KV head, one split of the keys, one sequence.

    `IS_WHOLE`: there is one split and the result goes to out [S, H * D]. Else out is float32 [S, H, splits, D], sums of
    values not yet divided, and stats float32 [2, S, H, splits], m and l; a split without keys writes m and l only.
    """
    GROUP: tl.constexpr = HEADS // KV_HEADS
    TILES: tl.constexpr = (GROUP + TILE_HEADS - 1) // TILE_HEADS
    kv_head = tl.program_id(0) // TILES
    split, num_splits = tl.program_id(1), tl.num_programs(1)
    sequence = tl.program_id(2).to(tl.int64)

    in_group = (tl.program_id(0) % TILES) * TILE_HEADS + tl.arange(0, TILE_HEADS)
    is_head = in_group < GROUP
    heads = kv_head * GROUP + in_group
    d = tl.arange(0, TILE_SIZE)
    is_dim = d < SIZE
    lane = tl.arange(0, TILE_KEYS)

    # A window starts anywhere, not at a tile's edge: then no tile has keys before it, and none needs a mask for them.
    seq_len = tl.load(lens_ptr + sequence)
    first = tl.maximum(seq_len - window, 0)
    tiles = tl.cdiv(seq_len - first, TILE_KEYS)
    per_split = tl.cdiv(tiles, num_splits) * TILE_KEYS
    start = first + split * per_split
    end = tl.minimum(start + per_split, seq_len)

    query = tl.load(
        query_ptr + sequence * query_stride + heads[:, None] * head_stride + d[None, :],
        mask=is_head[:, None] & is_dim[None, :],
        other=0.0,
    ).to(tl.float32)
    if COMPUTE == tl.float16:
        # A bfloat16 query may exceed float16, in which an e4m3 cache is exact: its rows go in as fractions of 1.
        size = tl.max(tl.abs(query), 1)
        size = tl.where(size == 0.0, 1.0, size)
        query = query / size[:, None]
        score_scale = score_scale * size[:, None]
    query = query.to(COMPUTE)
    m = tl.full([TILE_HEADS], float("-inf"), tl.float32)
    l = tl.zeros([TILE_HEADS], tl.float32)
    values = tl.zeros([TILE_HEADS, TILE_SIZE], tl.float32)

    table_ptr += sequence * table_stride
    key_ptr += kv_head * (BLOCK_SIZE * SIZE)
    value_ptr += kv_head * (BLOCK_SIZE * SIZE)
    # The ids of a tile's blocks are loaded while the tile before it is worked on. Were they loaded with the tile, the
    # software pipeline would count two loads in a row and keep half as many tiles under way.
    block = tl.load(table_ptr + (start + lane) // BLOCK_SIZE, mask=start + lane < end, other=0)
    for at in range(start, end, TILE_KEYS):
        position = at + lane
        is_key = position < end
        run = block.to(tl.int64) * (KV_HEADS * BLOCK_SIZE * SIZE) + (position % BLOCK_SIZE) * SIZE
        offset = run[:, None] + d[None, :]
        inside = is_key[:, None] & is_dim[None, :]
        key = tl.load(key_ptr + offset, mask=inside, other=0.0)
        scores = tl.dot(query, tl.trans(_in_type(key, COMPUTE)), input_precision="ieee")
        if IS_CAPPED:
            scores = soft_capped(scores * score_scale, soft_cap) * LOG2_E
        else:
            scores = scores * score_scale
        scores = tl.where(is_key[None, :], scores, float("-inf"))
        new_m = tl.maximum(m, tl.max(scores, 1))
        weights = tl.exp2(scores - new_m[:, None])
        factor = tl.exp2(m - new_m)
        l = l * factor + tl.sum(weights, 1)
        m = new_m
        value = tl.load(value_ptr + offset, mask=inside, other=0.0)
        values = tl.dot(
            weights.to(COMPUTE), _in_type(value, COMPUTE), values * factor[:, None], input_precision="ieee"
        )
        following = position + TILE_KEYS
        block = tl.load(table_ptr + following // BLOCK_SIZE, mask=following < end, other=0)

    inside = is_head[:, None] & is_dim[None, :]
    if IS_WHOLE:
        _, l, factor = _with_sink(sinks_ptr, heads, is_head, m, l)
        values = values * (factor * value_scale / tl.where(l == 0.0, 1.0, l))[:, None]
        offset = sequence * out_stride + heads[:, None] * SIZE + d[None, :]
        tl.store(out_ptr + offset, values.to(out_ptr.dtype.element_ty), mask=inside)
    else:
        row = (sequence * HEADS + heads) * num_splits + split
        tl.store(stats_ptr + row, m, mask=is_head)
        tl.store(stats_ptr + tl.num_programs(2).to(tl.int64) * HEADS * num_splits + row, l, mask=is_head)
        if start < end:
            tl.store(out_ptr + row[:, None] * SIZE + d[None, :], values, mask=inside)


@triton.jit
def _in_type(cached, COMPUTE: tl.constexpr):
    """What a cache holds, in the type of the products; uint8 are e4m3 codes."""
    if cached.dtype == tl.uint8:
        return e4m3_to_float16(cached).to(COMPUTE)
    return cached.to(COMPUTE)


@triton.jit(do_not_specialize=["num_splits"])
def _join(
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
    """One head of one sequence: sum of exp2(m_i - m) * values_i over sum of exp2(m_i - m) * l_i, the sink in the latter.

    Reads the values of those splits only that had keys: the others wrote none.
    """
    head, sequence = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row = (sequence * HEADS + head) * num_splits
    num_stats = tl.num_programs(1).to(tl.int64) * HEADS * num_splits
    every = tl.arange(0, MOST)
    m = tl.load(stats_ptr + row + every, mask=every < num_splits, other=float("-inf"))
    l = tl.load(stats_ptr + num_stats + row + every, mask=every < num_splits, other=0.0)
    top = tl.max(m, 0)
    safe = tl.where(top == float("-inf"), 0.0, top)
    peak, total, _ = _with_sink(sinks_ptr, head, True, top, tl.sum(l * tl.exp2(m - safe), 0))

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
    if key_cache.dtype == torch.float8_e4m3fn and not hardware.has_float8:
        key_cache, value_cache = key_cache.view(torch.uint8), value_cache.view(torch.uint8)
    shape = tiling(hardware, num_heads // num_kv_heads, size, key_cache.dtype)
    num_tiles = num_kv_heads * triton.cdiv(num_heads // num_kv_heads, shape.tile_heads)
    splits = number_of_splits(hardware, num_sequences, num_tiles)
    target, stats = out, seq_lens
    if splits > 1:
        target = torch.empty(num_sequences, num_heads, splits, size, dtype=torch.float32, device=query.device)
        stats = torch.empty(2, num_sequences, num_heads, splits, dtype=torch.float32, device=query.device)
    _attend[(num_tiles, splits, num_sequences)](
        query,
        key_cache,
        value_cache,
        block_table,
        seq_lens,
        form.sinks if splits == 1 else None,
        target,
        stats,
        form.scale * form.key_scale * (1.0 if form.soft_cap else LOG2_E.value),
        form.soft_cap,
        form.value_scale,
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
        COMPUTE=_type_of_products(query.dtype, key_cache.dtype),
        IS_CAPPED=bool(form.soft_cap),
        IS_WHOLE=splits == 1,
        num_warps=shape.num_warps,
        num_stages=shape.num_stages,
    )
    if splits > 1:
        _join[(num_heads, num_sequences)](
            target,
            stats,
            form.sinks,
            out,
            form.value_scale,
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
    """float32 stays itself; an e4m3 cache is multiplied in float16, in which it is exact, other caches in their type."""
    if query_dtype == torch.float32:
        return tl.float32
    return tl.bfloat16 if cache_dtype == torch.bfloat16 else tl.float16


def compile_cases(hardware: Hardware) -> Iterator[CompileCase]:
    """Head sizes, types and forms that the configurations tell apart; 256 sequences are not split, 4 are."""
    bf16, e4m3 = torch.bfloat16, torch.float8_e4m3fn
    full = AttentionForm(0.1, window=128, soft_cap=30.0, sinks=torch.empty(64, device="meta"))
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
