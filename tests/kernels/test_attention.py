"""Paged attention and the cache write, reference and CPU form, against float64."""

import itertools

import pytest
import torch

from kernels import AttentionMetadata, for_device
from kernels.cpu import CpuKernels
from kernels.cpu.attention import CpuAttentionPlan, plan
from kernels.interface import Kernels
from kernels.reference import ReferenceKernels
from tests.kernels import oracle

BLOCK_SIZE = 16
# (query_len, seq_len): a decode, a whole prompt, a chunk with a past; lengths off the block boundary and on it.
MIXED = [(1, 17), (5, 5), (1, 1), (7, 40), (1, 33), (16, 32), (1, 300)]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-3, torch.float16: 1e-3}


def make_case(lens, num_heads, num_kv_heads, head_dim, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    blocks_of = [-(-seq_len // BLOCK_SIZE) for _, seq_len in lens]
    num_blocks = sum(blocks_of) + 3
    ids = (torch.randperm(num_blocks - 1, generator=generator) + 1).tolist()
    table = torch.zeros(len(lens), max(blocks_of), dtype=torch.int32)
    for s, count in enumerate(blocks_of):
        table[s, :count] = torch.tensor([ids.pop() for _ in range(count)])
    shape = (num_blocks, BLOCK_SIZE, num_kv_heads, head_dim)
    key_cache = torch.randn(shape, generator=generator).to(dtype)
    value_cache = torch.randn(shape, generator=generator).to(dtype)
    query_lens = [query_len for query_len, _ in lens]
    query = torch.randn(sum(query_lens), num_heads, head_dim, generator=generator).to(dtype)
    metadata = AttentionMetadata(
        slot_mapping=torch.empty(0, dtype=torch.int64),
        query_start_loc=torch.tensor([0, *itertools.accumulate(query_lens)], dtype=torch.int32),
        seq_lens=torch.tensor([seq_len for _, seq_len in lens], dtype=torch.int32),
        block_table=table,
        max_query_len=max(query_lens),
        max_seq_len=max(seq_len for _, seq_len in lens),
    )
    return query, key_cache, value_cache, metadata


def check(kernels: Kernels, lens, num_heads, num_kv_heads, head_dim, dtype):
    query, key_cache, value_cache, metadata = make_case(lens, num_heads, num_kv_heads, head_dim, dtype)
    scale = head_dim**-0.5
    step = kernels.plan_attention(metadata, BLOCK_SIZE)
    found = kernels.paged_attention(query, key_cache, value_cache, step, scale)
    expected = oracle.attention(query, key_cache, value_cache, metadata.block_table, lens, scale)
    assert found.dtype == dtype and found.shape == expected.shape
    assert oracle.relative_error(found, expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("heads", [(4, 2, 64), (3, 3, 80), (8, 1, 128), (6, 2, 48)])
def test_cpu_form_matches_float64_on_a_mixed_batch(heads, dtype):
    check(CpuKernels(), MIXED, *heads, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reference_matches_float64(dtype):
    check(ReferenceKernels(), MIXED, 4, 2, 64, dtype)


@pytest.mark.parametrize(
    "lens",
    [
        [(1, 1)],
        [(1, 200)],
        [(1, n) for n in (5, 500, 17, 420, 16, 490, 1)],
        [(64, 64)],
        [(1, 9), (1, 31), (1, 20)],
        [(2, 700), (33, 600)],
        [(129, 129), (300, 400)],
    ],
)
def test_cpu_form_on_other_shapes_of_batches(lens):
    kernels = CpuKernels()
    for _ in range(2):  # the second time in buffers that the first has left
        check(kernels, lens, 4, 2, 32, torch.float32)


def test_query_and_heads_may_be_strided():
    query, key_cache, value_cache, metadata = make_case(MIXED, 4, 2, 64, torch.float32)
    wide = torch.randn(query.shape[0], 7, 64)
    wide[:, 1:5] = query
    kernels = CpuKernels()
    step = kernels.plan_attention(metadata, BLOCK_SIZE)
    found = kernels.paged_attention(wide[:, 1:5], key_cache, value_cache, step, 0.125)
    assert torch.equal(found, kernels.paged_attention(query, key_cache, value_cache, step, 0.125))


def test_what_lies_past_a_sequence_does_not_count():
    query, key_cache, value_cache, metadata = make_case([(1, 20), (1, 50)], 4, 2, 32, torch.float32)
    kernels = CpuKernels()
    step = kernels.plan_attention(metadata, BLOCK_SIZE)
    before = kernels.paged_attention(query, key_cache, value_cache, step, 0.2)
    for cache in (key_cache, value_cache):
        cache[0] = 1e4  # the null block, which pads the short row
        cache[metadata.block_table[0, 1].item(), 4:] = -1e4
        cache[metadata.block_table[1, 3].item(), 2:] = 1e4
    assert torch.allclose(before, kernels.paged_attention(query, key_cache, value_cache, step, 0.2), atol=1e-6)


def test_a_prompt_in_chunks_equals_the_whole():
    lens = [(50, 50)]
    query, key_cache, value_cache, metadata = make_case(lens, 4, 2, 64, torch.float32)
    kernels = CpuKernels()
    whole = kernels.paged_attention(query, key_cache, value_cache, kernels.plan_attention(metadata, BLOCK_SIZE), 0.1)
    parts = []
    for start, end in ((0, 13), (13, 14), (14, 47), (47, 50)):
        chunk = AttentionMetadata(
            slot_mapping=metadata.slot_mapping,
            query_start_loc=torch.tensor([0, end - start], dtype=torch.int32),
            seq_lens=torch.tensor([end], dtype=torch.int32),
            block_table=metadata.block_table,
            max_query_len=end - start,
            max_seq_len=end,
        )
        step = kernels.plan_attention(chunk, BLOCK_SIZE)
        parts.append(kernels.paged_attention(query[start:end], key_cache, value_cache, step, 0.1))
    assert torch.allclose(whole, torch.cat(parts), atol=1e-5)


def test_rows_of_very_different_length_are_not_padded_to_the_longest():
    lens = [(1, 4000)] + [(1, 20)] * 6
    _, _, _, metadata = make_case(lens, 2, 1, 8, torch.float32)
    step = plan(metadata, BLOCK_SIZE)
    assert isinstance(step, CpuAttentionPlan)
    assert [(group.num_rows, group.max_len) for group in step.groups] == [(1, 4000), (6, 20)]


def test_a_foreign_plan_is_refused():
    query, key_cache, value_cache, _ = make_case([(1, 1)], 2, 1, 8, torch.float32)
    for kernels in (CpuKernels(), ReferenceKernels()):
        with pytest.raises(TypeError):
            kernels.paged_attention(query, key_cache, value_cache, object(), 1.0)


@pytest.mark.parametrize("kernels", [CpuKernels(), ReferenceKernels()])
@pytest.mark.parametrize("slots", [[3, 40, 17, 16], [-1, 5, -1, 31], [-1, -1, -1, -1]])
def test_store_kv_writes_the_slots_and_nothing_else(kernels, slots):
    key, value = torch.randn(4, 2, 8), torch.randn(4, 2, 8)
    caches = torch.zeros(4, BLOCK_SIZE, 2, 8), torch.zeros(4, BLOCK_SIZE, 2, 8)
    kernels.store_kv(key, value, *caches, torch.tensor(slots))
    for new, cache in zip((key, value), caches, strict=True):
        expected = torch.zeros(4 * BLOCK_SIZE, 2, 8)
        for token, slot in enumerate(slots):
            if slot >= 0:
                expected[slot] = new[token]
        assert torch.equal(cache.view_as(expected), expected)


def test_the_cpu_gets_its_own_forms():
    assert isinstance(for_device(torch.device("cpu")), CpuKernels)
