"""Norm, rotation and the cache's writing at real sizes, replayed with other slots than it was captured with."""

import dataclasses

import pytest
import torch

from kernels import AttentionHeads, reference
from tests.gpu.support import NUM_INT32, captured, needs_memory
from tests.kernels.oracle import relative_error

# Of results that are rounded to bfloat16 once, which is 1.7e-3 in norm, against float32 ones.
TOLERANCE = 3e-3
BLOCK_SIZE = 16


def layer(device: torch.device, *, has_norms: bool) -> AttentionHeads:
    norms = [torch.randn(128, device=device).to(torch.bfloat16) if has_norms else None for _ in range(2)]
    return AttentionHeads(32, 8, 128, norms[0], norms[1], 1e-6)


def poisoned_caches(num_blocks: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (num_blocks, 8, BLOCK_SIZE, 128)
    key, value = (torch.full(shape, float("nan"), dtype=torch.bfloat16, device=device) for _ in range(2))
    return key, value


def step(num_tokens: int, num_blocks: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(qkv, positions, slots), the slots among the last blocks, in no order and each once."""
    qkv = torch.randn(num_tokens, 48 * 128, device=device).to(torch.bfloat16)
    positions = torch.randint(0, 65536, (num_tokens,), device=device)
    slots = num_blocks * BLOCK_SIZE - 1 - torch.randperm(num_tokens, device=device)
    return qkv, positions, slots


def check(
    heads: AttentionHeads,
    qkv: torch.Tensor,
    tables: tuple[torch.Tensor, torch.Tensor],
    slots: torch.Tensor,
    found: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> None:
    """found: queries, key cache and value cache, after a step from caches that were NaN throughout."""
    used = slots >= 0
    blocks, offsets = slots[used] // BLOCK_SIZE, slots[used] % BLOCK_SIZE
    # By definition in float32, where norms are not rounded before the rotation; in a small cache, one slot per token.
    norms = [None if norm is None else norm.float() for norm in (heads.query_norm, heads.key_norm)]
    wide = dataclasses.replace(heads, query_norm=norms[0], key_norm=norms[1])
    caches = [torch.full((len(qkv), 1, 8, 128), float("nan"), device=qkv.device) for _ in range(2)]
    own_slots = torch.where(used, torch.arange(len(qkv), device=qkv.device), -1)
    query = reference.rotate_and_store(wide, qkv.float(), tables, (caches[0], caches[1]), own_slots)
    assert relative_error(found[0].reshape(query.shape)[used], query[used]) < TOLERANCE
    for cache, expected in zip(found[1:], caches, strict=True):
        assert relative_error(cache[blocks, :, offsets], expected[used, 0]) < TOLERANCE
        num_written = int((~cache.isnan()).sum()) // (8 * 128)
        assert num_written == int(used.sum()), "no other slot is written"


@pytest.mark.parametrize("has_norms", [False, True])
@pytest.mark.parametrize("num_tokens", [1, 7, 4096])
def test_step(device: torch.device, num_tokens: int, has_norms: bool) -> None:
    from kernels.gpu.rope import RotateAndStore, rope_tables

    heads = layer(device, has_norms=has_norms)
    inv_freq = 500_000.0 ** (-torch.arange(0, 128, 2, device=device) / 128)
    qkv, positions, slots = step(num_tokens, 300, device)
    tables = rope_tables(positions, inv_freq, 1.0)
    for found, expected in zip(tables, reference.rope_tables(positions, inv_freq, 1.0), strict=True):
        # float32 angles up to 65536 have steps of 2^-8: both round them alike, their sines differ in the last bits.
        assert float((found - expected).abs().max()) < 1e-5
    caches = poisoned_caches(300, device)
    query = RotateAndStore(heads)(qkv.clone(), tables, caches, slots)
    check(heads, qkv, tables, slots, (query, *caches))


def test_slots_past_int32(device: torch.device) -> None:
    from kernels.gpu.rope import RotateAndStore, rope_tables

    needs_memory(16)
    num_blocks = NUM_INT32 // (8 * BLOCK_SIZE * 128) + 64
    heads = layer(device, has_norms=False)
    inv_freq = 500_000.0 ** (-torch.arange(0, 128, 2, device=device) / 128)
    qkv, positions, slots = step(1000, num_blocks, device)
    assert int(slots.min()) * 8 * 128 >= NUM_INT32
    tables = rope_tables(positions, inv_freq, 1.0)
    caches = poisoned_caches(num_blocks, device)
    query = RotateAndStore(heads)(qkv.clone(), tables, caches, slots)
    check(heads, qkv, tables, slots, (query, *caches))


@pytest.mark.parametrize("num_tokens", [1, 256])
def test_replayed_with_other_slots_and_padding(device: torch.device, num_tokens: int) -> None:
    from kernels.gpu.rope import RotateAndStore, rope_tables

    heads = layer(device, has_norms=True)
    run = RotateAndStore(heads)
    inv_freq = 500_000.0 ** (-torch.arange(0, 128, 2, device=device) / 128)
    qkv, positions, slots = (part.clone() for part in step(num_tokens, 300, device))
    caches = poisoned_caches(300, device)
    graph, query = captured(lambda: run(qkv, rope_tables(positions, inv_freq, 1.0), caches, slots))
    for num_padding in (0, num_tokens // 2):
        fresh, new_positions, new_slots = step(num_tokens, 300, device)
        new_slots[num_tokens - num_padding :] = -1
        for static, new in ((qkv, fresh), (positions, new_positions), (slots, new_slots)):
            static.copy_(new)
        for cache in caches:
            cache.fill_(float("nan"))
        graph.replay()
        check(heads, fresh, rope_tables(new_positions, inv_freq, 1.0), new_slots, (query, *caches))
