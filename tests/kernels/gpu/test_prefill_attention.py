"""Prefill attention in Triton equals its definition, on mixed batches of every shape that the tiles tell apart."""

import dataclasses

import pytest
import torch

from kernels import reference
from kernels.gpu.hardware import Hardware
from kernels.gpu.prefill_attention import prefill_attention
from kernels.gpu.prefill_tiling import Tiling, tiling_for
from kernels.interface import AttentionForm, AttentionMetadata
from tests.kernels.oracle import relative_error
from tests.kernels.steps import GARBAGE

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-3, torch.float16: 1e-3}
# The real tiles are slow to interpret; these have the same edges at shorter lengths.
SMALL = Tiling(rows=16, keys=16, num_warps=1, num_stages=2)


@dataclasses.dataclass
class Batch:
    """What one launch takes: caches [blocks, Hkv, block_size, D], of which unused slots hold NaN."""

    query: torch.Tensor
    key_cache: torch.Tensor
    value_cache: torch.Tensor
    starts: torch.Tensor
    lengths: torch.Tensor
    table: torch.Tensor

    def expected(self, form: AttentionForm) -> torch.Tensor:
        """By definition; what lies past a sequence's end is never read."""
        metadata = AttentionMetadata(torch.empty(0), self.starts, self.lengths, self.table, 0, 0)
        caches = [_bytes(c).transpose(1, 2).contiguous().view(c.dtype) for c in (self.key_cache, self.value_cache)]
        return reference.paged_attention(self.query.float(), *caches, metadata, form)


def _bytes(cache: torch.Tensor) -> torch.Tensor:
    return cache.view(torch.uint8) if cache.element_size() == 1 else cache


def make_batch(
    device: torch.device,
    lens: list[tuple[int, int]],
    *,
    group: int = 2,
    kv_heads: int = 2,
    head_dim: int = 16,
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
    cache_dtype: torch.dtype | None = None,
) -> Batch:
    """lens: (query_len, seq_len) of each sequence. Blocks are dealt in no order; block 0 is nobody's."""
    generator = torch.Generator().manual_seed(7)
    num_tokens = sum(queries for queries, _ in lens)
    query = torch.randn(num_tokens, group * kv_heads, head_dim, generator=generator).to(dtype)
    num_blocks = [-(-length // block_size) for _, length in lens]
    order = (torch.randperm(sum(num_blocks), generator=generator) + 1).tolist()
    table = torch.full((len(lens), max(*num_blocks, 1) + 1), GARBAGE, dtype=torch.int32)
    caches = torch.full((2, sum(num_blocks) + 1, kv_heads, block_size, head_dim), float("nan"))
    for s, (_, length) in enumerate(lens):
        for n in range(num_blocks[s]):
            table[s, n] = order.pop()
            used = min(block_size, length - n * block_size)
            caches[:, int(table[s, n]), :, :used] = torch.randn(2, kv_heads, used, head_dim, generator=generator)
    starts = torch.tensor([0, *(queries for queries, _ in lens)]).cumsum(0).to(torch.int32)
    lengths = torch.tensor([length for _, length in lens], dtype=torch.int32)
    keys, values = caches.to(cache_dtype or dtype)
    return Batch(*(x.to(device) for x in (query, keys, values, starts, lengths, table)))


def run(
    batch: Batch,
    form: AttentionForm,
    hardware: Hardware,
    tiling: Tiling | None = SMALL,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    return prefill_attention(
        batch.query, batch.key_cache, batch.value_cache, batch.starts, batch.lengths, batch.table, form, hardware,
        out=out, tiling=tiling,
    )  # fmt: skip


# Query lengths 1, block - 1, block, block + 1, and chunks behind a cached prefix, which end in a tile and between two.
MIXED = [(1, 1), (15, 15), (16, 16), (17, 17), (1, 40), (9, 33), (20, 52)]


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_mixed_batch(device: torch.device, hardware: Hardware, dtype: torch.dtype) -> None:
    batch, form = make_batch(device, MIXED, dtype=dtype), AttentionForm(0.25)
    found = run(batch, form, hardware)
    assert found.dtype == dtype
    assert relative_error(found, batch.expected(form)) < TOLERANCE[dtype]


@pytest.mark.parametrize("block_size", [32, 48, 128])
@pytest.mark.parametrize("keys", [16, 32])
def test_block_sizes(device: torch.device, hardware: Hardware, block_size: int, keys: int) -> None:
    batch, form = make_batch(device, [(5, 131), (50, 50)], block_size=block_size), AttentionForm(0.3)
    found = run(batch, form, hardware, Tiling(32, keys, 1, 2))
    assert relative_error(found, batch.expected(form)) < 1e-5


@pytest.mark.parametrize("group", [1, 3, 7, 8, 16, 20])
def test_groups(device: torch.device, hardware: Hardware, group: int) -> None:
    """20 is more heads than a tile has rows."""
    batch, form = make_batch(device, [(1, 30), (19, 35), (3, 3)], group=group), AttentionForm(0.25)
    assert relative_error(run(batch, form, hardware), batch.expected(form)) < 1e-5


@pytest.mark.parametrize("head_dim", [32, 64, 80, 96, 128, 256])
def test_head_sizes(device: torch.device, hardware: Hardware, head_dim: int) -> None:
    batch = make_batch(device, [(6, 21), (17, 17)], head_dim=head_dim, kv_heads=1)
    form = AttentionForm(head_dim**-0.5)
    assert relative_error(run(batch, form, hardware), batch.expected(form)) < 1e-5


@pytest.mark.parametrize("window", [1, 5, 16, 17, 37, 1000])
def test_window(device: torch.device, hardware: Hardware, window: int) -> None:
    batch, form = make_batch(device, [(1, 40), (70, 100), (33, 33)], kv_heads=1), AttentionForm(0.25, window=window)
    assert relative_error(run(batch, form, hardware), batch.expected(form)) < 1e-5


def test_soft_cap(device: torch.device, hardware: Hardware) -> None:
    batch, form = make_batch(device, MIXED), AttentionForm(2.0, soft_cap=3.0)
    found = run(batch, form, hardware)
    assert relative_error(found, batch.expected(form)) < 1e-5
    assert relative_error(found, batch.expected(AttentionForm(2.0))) > 0.1


@pytest.mark.parametrize("size", [-60.0, 1.0, 200.0])
def test_sinks(device: torch.device, hardware: Hardware, size: float) -> None:
    """Sinks far below and far above every score: the first take nothing, the second take all, and nothing is NaN."""
    batch = make_batch(device, MIXED)
    form = AttentionForm(0.25, sinks=torch.tensor([0.1, 1.0, -0.5, 0.7], device=device) + size)
    found = run(batch, form, hardware)
    if size > 100:
        assert torch.equal(found, torch.zeros_like(found))
    else:
        assert relative_error(found, batch.expected(form)) < 1e-5


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_window_cap_and_sinks_together(device: torch.device, hardware: Hardware, dtype: torch.dtype) -> None:
    sinks = torch.tensor([0.1, 1.0, -0.5, 0.7], device=device)
    batch = make_batch(device, MIXED, dtype=dtype)
    form = AttentionForm(0.25, window=20, soft_cap=5.0, sinks=sinks)
    assert relative_error(run(batch, form, hardware), batch.expected(form)) < TOLERANCE[dtype]


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_e4m3_cache(device: torch.device, hardware: Hardware, dtype: torch.dtype, native: bool) -> None:
    """With the type of the hardware, and by arithmetic on its bytes."""
    if native and not hardware.has_float8:
        pytest.skip("this GPU has no e4m3")
    hardware = hardware if native else dataclasses.replace(hardware, capability=80)
    batch = make_batch(device, MIXED, dtype=dtype, cache_dtype=torch.float8_e4m3fn)
    form = AttentionForm(0.25, key_scale=0.5, value_scale=3.0)
    assert relative_error(run(batch, form, hardware), batch.expected(form)) < TOLERANCE[dtype]


def test_the_tables_own_tiles(device: torch.device, hardware: Hardware) -> None:
    """At the configuration that a launch without `tiling` takes, over more than one of its key tiles."""
    batch = make_batch(device, [(40, 150), (1, 3)], kv_heads=1, group=4, head_dim=64, dtype=torch.bfloat16)
    form = AttentionForm(0.125)
    assert relative_error(run(batch, form, hardware, None), batch.expected(form)) < TOLERANCE[torch.bfloat16]


def test_query_may_be_strided(device: torch.device, hardware: Hardware) -> None:
    batch, form = make_batch(device, MIXED), AttentionForm(0.25)
    expected = run(batch, form, hardware)
    num_tokens, num_heads, head_dim = batch.query.shape
    fused = torch.full((num_tokens, num_heads + 3, head_dim), float("nan"), device=device)
    fused[:, 1 : 1 + num_heads] = batch.query
    batch.query = fused[:, 1 : 1 + num_heads]
    assert torch.equal(run(batch, form, hardware), expected)


def test_rows_before_the_first_sequence_stay(device: torch.device, hardware: Hardware) -> None:
    """The first sequences' tokens belong to another kernel, which has perhaps written them already."""
    whole, form = make_batch(device, MIXED), AttentionForm(0.25)
    expected, skipped = run(whole, form, hardware), 3
    rest = dataclasses.replace(
        whole, starts=whole.starts[skipped:], lengths=whole.lengths[skipped:], table=whole.table[skipped:]
    )
    out = torch.full_like(expected, 7.0)
    assert run(rest, form, hardware, out=out) is out
    first = int(whole.starts[skipped])
    assert torch.equal(out[first:], expected[first:])
    assert bool((out[:first] == 7.0).all())


def test_sequences_without_queries_and_rows_after_the_last_write_nothing(
    device: torch.device, hardware: Hardware
) -> None:
    """A captured graph's padding: sequences of no tokens, at the end or between others, and tokens of no sequence."""
    batch, form = make_batch(device, [(3, 20), (0, 0), (18, 18), (0, 0), (0, 0)]), AttentionForm(0.25)
    num_tokens = batch.query.shape[0]
    expected = batch.expected(form)
    batch.query = torch.cat((batch.query, torch.full_like(batch.query[:9], float("nan"))))
    out = torch.full((num_tokens + 9, expected.shape[1]), 7.0, device=device)
    run(batch, form, hardware, out=out)
    assert relative_error(out[:num_tokens], expected) < 1e-5
    assert bool((out[num_tokens:] == 7.0).all())


@pytest.mark.parametrize("window", [0, 5])
def test_a_query_without_keys_becomes_0(device: torch.device, hardware: Hardware, window: int) -> None:
    """A padding row of length 0, as the decode kernel's; its query may be anything finite."""
    batch, form = make_batch(device, [(1, 0), (3, 20), (1, 0)]), AttentionForm(0.25, window=window)
    found = run(batch, form, hardware)
    assert torch.equal(found[[0, 4]], torch.zeros_like(found[[0, 4]]))
    assert relative_error(found, batch.expected(form)) < 1e-5


def test_many_sequences_are_searched_in_parts(device: torch.device, hardware: Hardware) -> None:
    batch, form = make_batch(device, [(1, 2)] * 257 + [(18, 18)], kv_heads=1), AttentionForm(0.25)
    out = torch.full((batch.query.shape[0], 32), float("nan"), device=device)
    run(batch, form, hardware, Tiling(128, 16, 1, 2), out=out)
    assert relative_error(out, batch.expected(form)) < 1e-5


def test_no_tokens_is_nothing(device: torch.device, hardware: Hardware) -> None:
    batch = make_batch(device, [(2, 3)])
    batch.query = batch.query[:0]
    assert run(batch, AttentionForm(0.25), hardware).shape == (0, 64)


def test_every_head_size_has_a_tiling(hardware: Hardware) -> None:
    for head_dim in (16, 32, 64, 128, 256):
        for query_bytes, cache_bytes in ((2, 2), (2, 1), (4, 4), (4, 1)):
            tiling = tiling_for(hardware, head_dim, query_bytes, cache_bytes, is_plain=False)
            assert tiling.rows >= 16 and tiling.keys >= 16
