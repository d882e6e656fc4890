"""Rotary embedding and the write to the cache in Triton equal their definitions."""

import dataclasses
import math

import pytest
import torch

from kernels import reference
from kernels.gpu.rope import RotateAndStore, rope_tables
from kernels.interface import AttentionHeads
from tests.kernels.oracle import relative_error

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-3, torch.float16: 1e-3}
BLOCK_SIZE = 16
# Two blocks in use, out of order; -1 is padding.
SLOTS = [37, -1, 0, 79, 63, 64, -1]


def frequencies(half: int, base: float = 1e4) -> torch.Tensor:
    return base ** (-torch.arange(half, dtype=torch.float32) / half)


@pytest.mark.parametrize("half", [1, 24, 64])
@pytest.mark.parametrize("scale", [1.0, 1.3])
def test_tables(device: torch.device, half: int, scale: float) -> None:
    """Every position of a short context, and positions up to 2^20, at frequencies of 1 and less."""
    generator = torch.Generator().manual_seed(5)
    far = torch.randint(0, 2**20 + 1, (50,), generator=generator)
    positions = torch.cat((torch.arange(40), far, torch.tensor([2**20 - 1, 2**20]))).to(device)
    inv_freq = frequencies(half).to(device)
    cos, sin = rope_tables(positions, inv_freq, scale)
    assert cos.dtype == sin.dtype == torch.float32 and cos.shape == (92, half)
    # In float64 of the float32 angle, so that the bound does not hang on the device's own cos.
    angles = (positions.float()[:, None] * inv_freq).double()
    assert float((cos - angles.cos() * scale).abs().max()) < 3e-7
    assert float((sin - angles.sin() * scale).abs().max()) < 3e-7
    for found, expected in zip((cos, sin), reference.rope_tables(positions, inv_freq, scale), strict=True):
        assert float((found - expected).abs().max()) < 1e-6


def test_tables_at_the_corners_of_the_reduction(device: torch.device) -> None:
    """Angles next to multiples of pi / 4, where the quadrant changes or the remainder nearly vanishes."""
    count = torch.arange(-64, 1_300_000, 3701, dtype=torch.float64)
    near = (count * (math.pi / 4)).float()
    inv_freq = torch.cat((near, near.nextafter(near + 1), near.nextafter(near - 1))).to(device)
    cos, sin = rope_tables(torch.tensor([1], dtype=torch.int32, device=device), inv_freq, 1.0)
    assert float((cos[0] - inv_freq.double().cos()).abs().max()) < 3e-7
    assert float((sin[0] - inv_freq.double().sin()).abs().max()) < 3e-7


def test_no_tokens_have_empty_tables(device: torch.device) -> None:
    empty = torch.empty(0, dtype=torch.int64, device=device)
    assert [tuple(x.shape) for x in rope_tables(empty, frequencies(8).to(device), 1.0)] == [(0, 8)] * 2


def check(
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    *,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    head_dim: int = 16,
    turned: int | None = None,
    norms: tuple[bool, bool] = (True, True),
    cache_dtype: torch.dtype | None = None,
    scale: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Run on poisoned caches and compare queries and float caches; (keys, values) found and expected, flat."""
    generator = torch.Generator().manual_seed(11)
    qkv = torch.randn(len(SLOTS), (num_heads + 2 * num_kv_heads) * head_dim, generator=generator).to(dtype).to(device)
    weights = [(torch.rand(head_dim, generator=generator) + 0.5).to(dtype).to(device) if has else None for has in norms]
    heads = AttentionHeads(num_heads, num_kv_heads, head_dim, weights[0], weights[1], 1e-6, 0.5, 0.25)
    half = (head_dim if turned is None else turned) // 2
    positions = torch.tensor([3, 0, 17, 1000, 4, 5, 0], device=device)
    tables = reference.rope_tables(positions, frequencies(half).to(device), scale)
    slots = torch.tensor(SLOTS, device=device)
    cache_dtype = cache_dtype or dtype

    # By definition, in float32 throughout, so that only the kernel rounds.
    shape = (6, BLOCK_SIZE, num_kv_heads, head_dim)
    wide = dataclasses.replace(
        heads, **{n: None if w is None else w.float() for n, w in zip(("query_norm", "key_norm"), weights, strict=True)}
    )
    is_float8 = cache_dtype == torch.float8_e4m3fn
    kept = torch.float8_e4m3fn if is_float8 else torch.float32
    expected_caches = [torch.full(shape, float("nan"), device=device).to(kept) for _ in range(2)]
    expected = reference.rotate_and_store(wide, qkv.float(), tables, tuple(expected_caches), slots)

    caches = [
        torch.full((6, num_kv_heads, BLOCK_SIZE, head_dim), float("nan"), device=device).to(cache_dtype)
        for _ in range(2)
    ]
    found = RotateAndStore(heads)(qkv, tables, (caches[0], caches[1]), slots)
    assert found.shape == (len(SLOTS), num_heads, head_dim) and found.dtype == dtype
    assert relative_error(found, expected) < TOLERANCE[dtype]

    flat = [c.float().transpose(1, 2).flatten(0, 1) for c in caches] + [
        c.float().flatten(0, 1) for c in expected_caches
    ]
    written = [slot for slot in SLOTS if slot >= 0]
    others = [slot for slot in range(6 * BLOCK_SIZE) if slot not in written]
    for x in flat:
        assert bool(x[others].isnan().all()), "a slot was written that no token has"
    keys, values, expected_keys, expected_values = (x[written] for x in flat)
    if not is_float8:
        assert relative_error(keys, expected_keys) < TOLERANCE[dtype]
        assert torch.equal(values, expected_values)
    return keys, values, expected_keys, expected_values


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("norms", [(True, True), (False, False), (True, False), (False, True)])
def test_norms(device: torch.device, dtype: torch.dtype, norms: tuple[bool, bool]) -> None:
    check(device, dtype, norms=norms)


@pytest.mark.parametrize("head_dim", [2, 6, 32, 64, 80, 96, 128, 256])
def test_head_sizes(device: torch.device, head_dim: int) -> None:
    check(device, head_dim=head_dim)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("has_norm", [True, False])
@pytest.mark.parametrize(("head_dim", "turned"), [(64, 16), (80, 32), (96, 48), (16, 2)])
def test_partial_rotation(device: torch.device, dtype: torch.dtype, has_norm: bool, head_dim: int, turned: int) -> None:
    check(device, dtype, head_dim=head_dim, turned=turned, norms=(has_norm, has_norm))


@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(1, 1), (3, 3), (14, 2), (5, 1), (24, 8)])
def test_numbers_of_heads(device: torch.device, num_heads: int, num_kv_heads: int) -> None:
    """More and fewer heads than a program takes, and numbers that it does not divide."""
    check(device, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=128)


def test_a_scale_of_the_rotation_comes_through_the_tables(device: torch.device) -> None:
    """YaRN's, which multiplies cos and sin."""
    check(device, scale=1.37)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_e4m3_cache(device: torch.device, dtype: torch.dtype) -> None:
    """Values exactly; a key may fall on the other side of a rounding: one code, of 1 / 8 at most, and rarely."""
    keys, values, expected_keys, expected_values = check(device, dtype, cache_dtype=torch.float8_e4m3fn)
    assert torch.equal(values, expected_values)
    assert torch.allclose(keys, expected_keys, rtol=0.126, atol=2.0**-9)
    assert float((keys != expected_keys).float().mean()) < 0.01


def test_values_beyond_e4m3_saturate(device: torch.device) -> None:
    heads = AttentionHeads(1, 1, 16, None, None, 1e-6, 1e-3, 1e-3)
    qkv = torch.linspace(-2.0, 2.0, 48, device=device)[None]
    table = torch.ones(1, 8, device=device), torch.zeros(1, 8, device=device)
    keys, values = (torch.zeros(1, 1, 16, 16, device=device).to(torch.float8_e4m3fn) for _ in range(2))
    RotateAndStore(heads)(qkv, table, (keys, values), torch.tensor([2], device=device))
    expected = (qkv[0, 16:] / 1e-3).clamp(-448.0, 448.0).to(torch.float8_e4m3fn).float()
    assert bool((expected.abs() == 448.0).any())
    assert torch.equal(torch.cat((keys[0, 0, 2].float(), values[0, 0, 2].float())), expected)


def test_rows_may_be_strided_and_the_rest_of_them_stays(device: torch.device) -> None:
    """The queries are a view of the projection; its keys and values, and what lies beside it, are left."""
    heads = AttentionHeads(2, 1, 16, None, None, 1e-6)
    wide = torch.randn(3, 80, generator=torch.Generator().manual_seed(2)).to(device)
    before, qkv = wide.clone(), wide[:, 8:72]
    tables = reference.rope_tables(torch.arange(3, device=device), frequencies(8).to(device), 1.0)
    cache = tuple(torch.zeros(1, 1, 16, 16, device=device) for _ in range(2))
    slots = torch.arange(3, device=device)
    expected = reference.apply_rope(before[:, 8:40].unflatten(1, (2, 16)), tables)
    queries = RotateAndStore(heads)(qkv, tables, (cache[0], cache[1]), slots)
    assert queries.data_ptr() == qkv.data_ptr()
    assert relative_error(queries, expected) < 1e-5
    assert torch.equal(wide[:, :8], before[:, :8]) and torch.equal(wide[:, 40:], before[:, 40:])
    assert RotateAndStore(heads)(qkv[:0], tables, (cache[0], cache[1]), slots[:0]).shape == (0, 2, 16)
