"""Rotary embedding: the tables of a step, and what stands between a layer's projection and its attention.

The second is one launch for the norms of query and key heads, their rotation, and the write of keys and values to the
paged cache. It moves each byte once: queries are rotated where they lie, in the fused projection, which needs no second
buffer and, where a part of a head neither is normed nor turns, leaves that alone. Must not know the model.
"""

import functools
from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.arithmetic import float32_to_e4m3
from kernels.gpu.cases import CompileCase
from kernels.gpu.hardware import Hardware
from kernels.interface import AttentionHeads

# pi / 2 as two float32: Triton takes a literal as float32, even beside float64.
_HALF_PI = tl.constexpr(1.5707963705062866)
_HALF_PI_REST = tl.constexpr(-4.371138828673793e-08)
_TWO_OVER_PI = tl.constexpr(0.6366197466850281)
# Elements of a table that a program computes: 4 for each of 128 threads.
_TABLE_BLOCK = 512
# Elements of heads that a program rotates: 16 for each of 128 threads, two loads of 16 bytes at two bytes an element.
# So a multiprocessor has 64 KiB of loads in flight, and 4096 tokens of 48 heads of 128 are 12288 programs: of half the
# size, starting them, at about one in a nanosecond, would take nearly as long as moving their bytes.
_HEADS_BLOCK = 2048


@triton.jit(do_not_specialize=["num_tokens"], do_not_specialize_on_alignment=["positions_ptr"])
def _rope_tables(
    positions_ptr, inv_freq_ptr, cos_ptr, sin_ptr, num_tokens, scale, HALF: tl.constexpr, BLOCK: tl.constexpr
):
    """BLOCK elements of both tables.

    The angle is rounded to float32, as its definition has it. Its nearest multiple of pi / 2 is taken off in float64,
    where k * _HALF_PI is exact for k < 2^29; no angle needs the long reduction of the libraries' functions, nor its
    stack. What is left is at most pi / 4 (and 3 % for the rounding of 2 / pi): Taylor's series, up to r^9 and r^10, are
    off by less than 1e-8 there.
    """
    e = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    token = e // HALF
    inside = token < num_tokens
    position = tl.load(positions_ptr + token, mask=inside, other=0).to(tl.float32)
    angle = (position * tl.load(inv_freq_ptr + e % HALF, mask=inside, other=0.0).to(tl.float32)).to(tl.float64)
    turns = tl.floor(angle * _TWO_OVER_PI + 0.5)
    r = ((angle - turns * _HALF_PI) - turns * _HALF_PI_REST).to(tl.float32)
    s = r * r
    sin = r + r * s * (-1.0 / 6 + s * (1.0 / 120 + s * (-1.0 / 5040 + s * (1.0 / 362880))))
    cos = 1.0 + s * (-0.5 + s * (1.0 / 24 + s * (-1.0 / 720 + s * (1.0 / 40320 - s * (1.0 / 3628800)))))
    quadrant = turns.to(tl.int64) & 3
    swaps = (quadrant & 1) == 1
    turned_cos = tl.where(swaps, sin, cos)
    turned_sin = tl.where(swaps, cos, sin)
    turned_cos = tl.where((quadrant == 1) | (quadrant == 2), -turned_cos, turned_cos)
    turned_sin = tl.where(quadrant >= 2, -turned_sin, turned_sin)
    tl.store(cos_ptr + e, turned_cos * scale, mask=inside)
    tl.store(sin_ptr + e, turned_sin * scale, mask=inside)


def rope_tables(positions: Tensor, inv_freq: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """See `reference.rope_tables`; positions [T], an integer type, inv_freq [R / 2]: (cos, sin), float32 [T, R / 2].

    Right to 1e-6 times scale for angles up to 2^24.
    """
    shape = (positions.shape[0], inv_freq.shape[0])
    cos, sin = (torch.empty(shape, dtype=torch.float32, device=positions.device) for _ in range(2))
    if cos.numel() == 0:
        return cos, sin
    # The caller may have gathered either with a stride; the kernels read each as one run.
    positions, inv_freq = positions.contiguous(), inv_freq.contiguous()
    grid = (triton.cdiv(cos.numel(), _TABLE_BLOCK),)
    _rope_tables[grid](positions, inv_freq, cos, sin, shape[0], scale, HALF=shape[1], BLOCK=_TABLE_BLOCK, num_warps=4)
    return cos, sin


@triton.jit
def _put(pointers, x, mask, scale):
    """Store float32 as what the pointers point to: bytes are e4m3 codes of x / scale."""
    if pointers.dtype.element_ty == tl.uint8:
        tl.store(pointers, float32_to_e4m3(tl.div_rn(x, tl.zeros_like(x) + scale)), mask=mask)
    else:
        tl.store(pointers, x.to(pointers.dtype.element_ty), mask=mask)


@triton.jit
def _normed_and_turned(
    x_ptr, to_ptr, is_head, weight_ptr, cos_ptr, sin_ptr, eps, scale, to_stride,
    D: tl.constexpr, HALF: tl.constexpr, HALF_PADDED: tl.constexpr, REST_PADDED: tl.constexpr, HEADS: tl.constexpr,
    HAS_NORM: tl.constexpr, IN_PLACE: tl.constexpr,
):  # fmt: skip
    """HEADS heads from x_ptr, D apart, to to_ptr, to_stride apart: dimensions i, i + HALF < 2 HALF are turned."""
    i = tl.arange(0, HALF_PADDED)[None, :]
    j = 2 * HALF + tl.arange(0, REST_PADDED)[None, :]
    head = tl.arange(0, HEADS)[:, None]
    mask = is_head[:, None] & (i < HALF)
    rest_mask = is_head[:, None] & (j < D)
    # What all heads share is loaded for each of them: the first finds it in memory, the others in the cache nearby, and
    # nothing must be exchanged between threads.
    each = head * 0
    cos = tl.load(cos_ptr + each + i, mask=mask, other=0.0)
    sin = tl.load(sin_ptr + each + i, mask=mask, other=0.0)
    first = tl.load(x_ptr + head * D + i, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(x_ptr + head * D + i + HALF, mask=mask, other=0.0).to(tl.float32)
    # What does not turn need not move either, unless it is normed or the heads go elsewhere.
    moves_rest = (2 * HALF < D) and (HAS_NORM or not IN_PLACE)
    rest = tl.zeros([HEADS, REST_PADDED], tl.float32)
    if moves_rest:
        rest = tl.load(x_ptr + head * D + j, mask=rest_mask, other=0.0).to(tl.float32)
    if HAS_NORM:
        squares = tl.sum(first * first, 1) + tl.sum(second * second, 1)
        if moves_rest:
            squares += tl.sum(rest * rest, 1)
        factor = tl.rsqrt(squares / D + eps)[:, None]
        first *= factor * tl.load(weight_ptr + each + i, mask=mask, other=0.0).to(tl.float32)
        second *= factor * tl.load(weight_ptr + each + i + HALF, mask=mask, other=0.0).to(tl.float32)
        if moves_rest:
            rest *= factor * tl.load(weight_ptr + each + j, mask=rest_mask, other=0.0).to(tl.float32)
    if IN_PLACE:
        # Where a program has more threads than elements, several hold the same one: all read before one writes.
        tl.debug_barrier()
    _put(to_ptr + head * to_stride + i, first * cos - second * sin, mask, scale)
    _put(to_ptr + head * to_stride + i + HALF, second * cos + first * sin, mask, scale)
    if moves_rest:
        _put(to_ptr + head * to_stride + j, rest, rest_mask, scale)


@triton.jit(do_not_specialize_on_alignment=["slots_ptr"])
def _rotate_and_store(
    qkv_ptr, cos_ptr, sin_ptr, key_ptr, value_ptr, slots_ptr, query_norm_ptr, key_norm_ptr, eps, key_scale, value_scale,
    qkv_stride, H: tl.constexpr, HKV: tl.constexpr, D: tl.constexpr, D_PADDED: tl.constexpr, HALF: tl.constexpr,
    HALF_PADDED: tl.constexpr, REST_PADDED: tl.constexpr, BLOCK_SIZE: tl.constexpr, HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr, HAS_QUERY_NORM: tl.constexpr, HAS_KEY_NORM: tl.constexpr,
):  # fmt: skip
    """HEADS query heads of one token, or KV_HEADS key and value heads. A token's programs: its queries', then those."""
    QUERY_COLUMNS: tl.constexpr = (H + HEADS - 1) // HEADS
    KV_COLUMNS: tl.constexpr = (HKV + KV_HEADS - 1) // KV_HEADS
    columns = QUERY_COLUMNS + KV_COLUMNS
    token = (tl.program_id(0) // columns).to(tl.int64)
    column = tl.program_id(0) % columns
    row_ptr = qkv_ptr + token * qkv_stride
    cos_row, sin_row = cos_ptr + token * HALF, sin_ptr + token * HALF
    if column < QUERY_COLUMNS:
        first = column * HEADS
        heads_ptr = row_ptr + first * D
        _normed_and_turned(
            heads_ptr, heads_ptr, first + tl.arange(0, HEADS) < H, query_norm_ptr, cos_row, sin_row, eps, 1.0, D,
            D, HALF, HALF_PADDED, REST_PADDED, HEADS, HAS_QUERY_NORM, True,
        )  # fmt: skip
    else:
        slot = tl.load(slots_ptr + token)
        first = (column - QUERY_COLUMNS) * KV_HEADS
        h = tl.arange(0, KV_HEADS)
        is_head = (first + h < HKV) & (slot >= 0)
        at = ((slot // BLOCK_SIZE * HKV + first) * BLOCK_SIZE + slot % BLOCK_SIZE) * D
        # The values are asked for before the keys are waited for.
        i = tl.arange(0, D_PADDED)[None, :]
        mask = is_head[:, None] & (i < D)
        values = tl.load(row_ptr + (H + HKV + first + h)[:, None] * D + i, mask=mask, other=0.0).to(tl.float32)
        _normed_and_turned(
            row_ptr + (H + first) * D, key_ptr + at, is_head, key_norm_ptr, cos_row, sin_row, eps, key_scale,
            BLOCK_SIZE * D, D, HALF, HALF_PADDED, REST_PADDED, KV_HEADS, HAS_KEY_NORM, False,
        )  # fmt: skip
        _put(value_ptr + at + h[:, None] * (BLOCK_SIZE * D) + i, values, mask, value_scale)


class RotateAndStore:
    """See `interface.RotateAndStore` and `reference.rotate_and_store`; for caches [blocks, Hkv, block_size, D]."""

    def __init__(self, heads: AttentionHeads) -> None:
        self._heads = heads

    def __call__(
        self, qkv: Tensor, tables: tuple[Tensor, Tensor], cache: tuple[Tensor, Tensor], slot_mapping: Tensor
    ) -> Tensor:
        """Overwrite the queries in qkv [T, (H + 2 * Hkv) * D], rows possibly strided, and return a view of them.

        tables: float32 [T, R / 2], R <= D. cache: contiguous, of a float type or e4m3. slot_mapping: int64 [T].
        """
        heads = self._heads
        num_heads, head_dim = heads.num_heads, heads.head_dim
        queries: Tensor = qkv[:, : num_heads * head_dim].unflatten(1, (num_heads, head_dim))
        if qkv.shape[0] == 0:
            return queries
        key_cache, value_cache = (x.view(torch.uint8) if x.element_size() == 1 else x for x in cache)
        cos, sin = (table.contiguous() for table in tables)
        columns, sizes = _launch_sizes(num_heads, heads.num_kv_heads, head_dim, cos.shape[1])
        _rotate_and_store[(qkv.shape[0] * columns,)](
            qkv, cos, sin, key_cache, value_cache, slot_mapping.contiguous(),
            cos if heads.query_norm is None else heads.query_norm,
            cos if heads.key_norm is None else heads.key_norm,
            heads.eps, heads.key_scale, heads.value_scale, qkv.stride(0),
            BLOCK_SIZE=key_cache.shape[2],
            HAS_QUERY_NORM=heads.query_norm is not None, HAS_KEY_NORM=heads.key_norm is not None, **sizes,
        )  # fmt: skip
        return queries


@functools.cache
def _launch_sizes(num_heads: int, num_kv_heads: int, head_dim: int, half: int) -> tuple[int, dict[str, int]]:
    """(programs per token, the kernel's sizes). Kept: triton's own arithmetic takes the host 2 us a call."""
    padded = triton.next_power_of_2(head_dim)
    per_program = max(1, _HEADS_BLOCK // padded)
    query_heads = min(per_program, triton.next_power_of_2(num_heads))
    kv_heads = min(per_program, triton.next_power_of_2(num_kv_heads))
    columns = triton.cdiv(num_heads, query_heads) + triton.cdiv(num_kv_heads, kv_heads)
    return columns, {
        "H": num_heads,
        "HKV": num_kv_heads,
        "D": head_dim,
        "D_PADDED": padded,
        "HALF": half,
        "HALF_PADDED": triton.next_power_of_2(max(half, 1)),
        "REST_PADDED": triton.next_power_of_2(max(head_dim - 2 * half, 1)),
        "HEADS": query_heads,
        "KV_HEADS": kv_heads,
        "num_warps": max(1, min(4, query_heads * padded // 512)),
    }


def compile_cases(hardware: Hardware) -> Iterator[CompileCase]:
    """Tables; heads with and without norms, e4m3 caches, partial rotation, a size that is no power of two."""
    positions, inv_freq = torch.empty(8, dtype=torch.int64, device="meta"), torch.empty(64, device="meta")
    yield CompileCase("float32 128", functools.partial(rope_tables, positions, inv_freq, 1.0))
    shapes = (
        ("bfloat16 128", 128, 128, torch.bfloat16, False),
        ("bfloat16 128, norms", 128, 128, torch.bfloat16, True),
        ("bfloat16 128, norms, e4m3 cache", 128, 128, torch.float8_e4m3fn, True),
        ("bfloat16 80, 32 turned", 80, 32, torch.bfloat16, False),
        ("bfloat16 256, norms", 256, 256, torch.bfloat16, True),
    )
    for name, head_dim, turned, cache_dtype, has_norm in shapes:
        weight = torch.empty(head_dim, dtype=torch.bfloat16, device="meta") if has_norm else None
        step = RotateAndStore(AttentionHeads(32, 8, head_dim, weight, weight, 1e-6))
        qkv = torch.empty(8, 48 * head_dim, dtype=torch.bfloat16, device="meta")
        table = torch.empty(8, turned // 2, device="meta")
        cache = torch.empty(10, 8, 32, head_dim, dtype=cache_dtype, device="meta")
        yield CompileCase(name, functools.partial(step, qkv, (table, table), (cache, cache), positions))
