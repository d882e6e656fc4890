"""Paged attention and what stands before it, every form against float64."""

import dataclasses
import itertools

import pytest
import torch

from kernels import AttentionForm, AttentionHeads, AttentionMetadata, Kernels, for_device
from kernels.cpu import CpuKernels
from kernels.reference import ReferenceKernels, rope_tables
from tests.kernels import oracle
from tests.kernels.steps import GARBAGE

BLOCK_SIZE = 16
CPU = torch.device("cpu")
# (query_len, seq_len): a decode, a whole prompt, a chunk with a past; lengths off the block boundary and on it.
MIXED = [(1, 17), (5, 5), (1, 1), (7, 40), (1, 33), (16, 32), (1, 300)]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 8e-3}
dtypes = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)


def cpu() -> CpuKernels:
    kernels = for_device(CPU)
    assert isinstance(kernels, CpuKernels), "the compiled kernels are missing"
    return kernels


@dataclasses.dataclass
class Case:
    """A ragged batch whose K/V also lie densely, [blocks, block_size, Hkv, D], for the oracle."""

    kernels: Kernels
    lens: list[tuple[int, int]]
    query: torch.Tensor
    cache: tuple[torch.Tensor, torch.Tensor]
    dense: tuple[torch.Tensor, torch.Tensor]
    metadata: AttentionMetadata
    scale: float

    def attend(self, query: torch.Tensor | None = None) -> torch.Tensor:
        plan = self.kernels.plan_attention(self.metadata)
        return self.kernels.paged_attention(
            self.query if query is None else query, *self.cache, plan, AttentionForm(self.scale)
        )

    def check(self) -> None:
        found = self.attend()
        expected = oracle.attention(self.query, *self.dense, self.metadata.block_table, self.lens, self.scale)
        assert found.dtype == self.query.dtype and found.shape == expected.shape
        assert oracle.relative_error(found, expected) < TOLERANCE[self.query.dtype]


def fill(kernels: Kernels, keys: torch.Tensor, values: torch.Tensor, block_size: int):
    """The kernels' own caches with these K/V in slots 0, 1, …, written as the engine writes them (rotated by 0)."""
    num_slots, num_kv_heads, head_dim = keys.shape
    shapes = kernels.kv_cache_shapes(num_slots // block_size, block_size, num_kv_heads, head_dim)
    cache = tuple(torch.zeros(shape, dtype=keys.dtype) for shape in shapes)
    heads = AttentionHeads(num_kv_heads, num_kv_heads, head_dim, None, None, 0.0)
    qkv = torch.cat((keys, keys, values), 1).flatten(1).contiguous()
    no_turn = rope_tables(torch.zeros(num_slots), torch.ones(head_dim // 2), 1.0)
    kernels.pack_heads(heads)(qkv, no_turn, cache, torch.arange(num_slots))
    return cache


def make_case(kernels, lens, num_heads, num_kv_heads, head_dim, dtype, *, block_size=BLOCK_SIZE, seed=0) -> Case:
    generator = torch.Generator().manual_seed(seed)
    blocks_of = [-(-seq_len // block_size) for _, seq_len in lens]
    num_blocks = sum(blocks_of) + 3
    ids = (torch.randperm(num_blocks - 1, generator=generator) + 1).tolist()
    # What stands past a sequence's blocks means nothing.
    table = torch.full((len(lens), max(blocks_of) + 1), GARBAGE, dtype=torch.int32)
    for s, count in enumerate(blocks_of):
        table[s, :count] = torch.tensor([ids.pop() for _ in range(count)])
    shape = (num_blocks * block_size, num_kv_heads, head_dim)
    keys, values = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
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
    dense = tuple(tensor.view(num_blocks, block_size, num_kv_heads, head_dim) for tensor in (keys, values))
    return Case(kernels, lens, query, fill(kernels, keys, values, block_size), dense, metadata, head_dim**-0.5)


@dtypes
@pytest.mark.parametrize("heads", [(4, 2, 64), (3, 3, 80), (8, 1, 128), (6, 2, 40), (2, 2, 256), (48, 1, 16)])
def test_cpu_form_matches_float64_on_a_mixed_batch(heads, dtype):
    make_case(cpu(), MIXED, *heads, dtype).check()


@dtypes
def test_reference_matches_float64(dtype):
    make_case(ReferenceKernels(), MIXED, 4, 2, 64, dtype).check()


@dtypes
@pytest.mark.parametrize("kernels", [cpu(), ReferenceKernels()], ids=["cpu", "reference"])
def test_padding_becomes_zeros_and_harms_nobody(kernels, dtype):
    make_case(kernels, [(1, 0), (1, 17), (1, 0), (5, 20), (1, 0)], 4, 2, 64, dtype).check()


@pytest.mark.parametrize("block_size", [16, 32, 48, 128])
@pytest.mark.parametrize(
    "lens",
    [
        [(1, 1)],
        [(1, n) for n in (5, 600, 17, 512, 16, 513, 1)],
        [(64, 64)],
        [(2, 1100), (33, 600)],
        [(129, 129), (300, 700)],
    ],
)
def test_cpu_form_on_other_shapes_of_batches(lens, block_size):
    make_case(cpu(), lens, 4, 2, 32, torch.float32, block_size=block_size).check()


def test_query_and_heads_may_be_strided():
    case = make_case(cpu(), MIXED, 4, 2, 64, torch.float32)
    wide = torch.randn(case.query.shape[0], 7, 64)
    wide[:, 1:5] = case.query
    assert torch.equal(case.attend(wide[:, 1:5]), case.attend())


@dtypes
@pytest.mark.parametrize("stale", [1e4, float("inf"), float("nan")])
def test_what_lies_past_a_sequence_does_not_count(dtype, stale):
    lens = [(1, 21), (3, 50), (1, 17)]
    case = make_case(cpu(), lens, 4, 2, 32, dtype)
    before = case.attend()
    for dense in case.dense:
        dense[0] = stale  # nobody's
        for s, (_, seq_len) in enumerate(lens):
            dense[case.metadata.block_table[s, seq_len // BLOCK_SIZE], seq_len % BLOCK_SIZE :] = stale
    case.cache = fill(case.kernels, *(dense.flatten(0, 1) for dense in case.dense), BLOCK_SIZE)
    assert torch.equal(before, case.attend())


@dtypes
@pytest.mark.parametrize("heads", [(4, 2, 64), (14, 2, 80)])
def test_a_row_is_bitwise_the_same_alone_in_chunks_and_in_a_batch(heads, dtype):
    lens = [(1, 700), (130, 130), (90, 650)]
    case = make_case(cpu(), lens, *heads, dtype, block_size=32)
    batched = case.attend()
    first = 0
    for s, (query_len, seq_len) in enumerate(lens):
        cuts = sorted({0, 1, 14, min(47, query_len), query_len} & set(range(query_len + 1)))
        for start, end in itertools.pairwise(cuts):
            chunk = AttentionMetadata(
                slot_mapping=case.metadata.slot_mapping,
                query_start_loc=torch.tensor([0, end - start], dtype=torch.int32),
                seq_lens=torch.tensor([seq_len - query_len + end], dtype=torch.int32),
                block_table=case.metadata.block_table[s : s + 1],
                max_query_len=end - start,
                max_seq_len=seq_len - query_len + end,
            )
            rows = slice(first + start, first + end)
            plan = case.kernels.plan_attention(chunk)
            alone = case.kernels.paged_attention(case.query[rows], *case.cache, plan, AttentionForm(case.scale))
            assert torch.equal(alone, batched[rows])
        first += query_len


def test_a_foreign_plan_is_refused():
    for kernels in (cpu(), ReferenceKernels()):
        case = make_case(kernels, [(1, 1)], 2, 1, 8, torch.float32)
        with pytest.raises(TypeError):
            kernels.paged_attention(case.query, *case.cache, object(), AttentionForm(1.0))


def test_heads_without_room_are_refused():
    for heads in ((2, 2, 512), (49, 1, 64), (2, 2, 63)):
        with pytest.raises(ValueError, match="not supported"):
            cpu().pack_heads(AttentionHeads(*heads, None, None, 0.0))


@dtypes
@pytest.mark.parametrize("with_norm", [False, True])
@pytest.mark.parametrize("shape", [(4, 2, 64), (3, 1, 10), (2, 2, 80)])
def test_rotate_and_store_matches_the_reference(shape, with_norm, dtype):
    torch.manual_seed(0)
    num_heads, num_kv_heads, head_dim = shape
    norms = [(torch.rand(head_dim) + 0.5).to(dtype) if with_norm else None for _ in range(2)]
    heads = AttentionHeads(*shape, *norms, 1e-6)
    slots = torch.tensor([3, -1, 40, 17, 16, -1, 63])
    qkv = torch.randn(len(slots), (num_heads + 2 * num_kv_heads) * head_dim).to(dtype)
    tables = rope_tables(torch.arange(len(slots)) * 57, 10000.0 ** -(torch.arange(0, head_dim, 2) / head_dim), 1.0)
    outputs = []
    for kernels in (cpu(), ReferenceKernels()):
        shapes = kernels.kv_cache_shapes(4, BLOCK_SIZE, num_kv_heads, head_dim)
        cache = tuple(torch.zeros(one, dtype=dtype) for one in shapes)
        query = kernels.pack_heads(heads)(qkv.clone(), tables, cache, slots)
        # What the caches hold is only known through attention: one query per slot that sees this slot's block alone.
        outputs.append((query, cache))
    (query, cache), (expected, dense) = outputs
    assert oracle.relative_error(query, expected) < TOLERANCE[dtype]
    for name, mine, theirs in zip(("keys", "values"), unpack(*cache, head_dim), dense, strict=True):
        assert oracle.relative_error(mine, theirs) < TOLERANCE[dtype], name
        written = theirs.flatten(0, 1).abs().sum((1, 2)) > 0
        assert sorted(written.nonzero().flatten().tolist()) == [3, 16, 17, 40, 63]
        assert torch.equal(mine.flatten(0, 1).abs().sum((1, 2)) > 0, written)


def unpack(keys: torch.Tensor, values: torch.Tensor, head_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The compiled kernels' caches as [blocks, block_size, Hkv, D]; the layout is described in attention.c."""
    p = 2 if keys.dtype == torch.bfloat16 else 1
    blocks, num_kv_heads, padded, block_size = keys.shape
    dense_keys = keys.view(blocks, num_kv_heads, padded // p, block_size, p).permute(0, 3, 1, 2, 4)
    dense_values = values.view(blocks, num_kv_heads, block_size // p, padded, p).permute(0, 2, 4, 1, 3)
    shape = (blocks, block_size, num_kv_heads, padded)
    return dense_keys.reshape(shape)[..., :head_dim], dense_values.reshape(shape)[..., :head_dim]
