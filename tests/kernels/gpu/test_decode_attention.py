"""Decode attention in Triton equals its definition, whatever lies in the slots that hold no key."""

import dataclasses
import json
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

import kernels.gpu.decode_attention as module
from kernels import reference
from kernels.gpu.decode_attention import decode_attention
from kernels.gpu.decode_tuning import MAX_SPLITS, number_of_splits, tiling
from kernels.gpu.hardware import KNOWN, Hardware
from kernels.interface import AttentionForm, AttentionMetadata
from tests.kernels.oracle import relative_error
from tests.kernels.steps import GARBAGE

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-3, torch.float16: 1e-3}
E4M3 = torch.float8_e4m3fn


@dataclasses.dataclass
class Batch:
    """One token per sequence; the caches as the reference has them, [blocks, block_size, Hkv, D]."""

    query: Tensor
    key_cache: Tensor
    value_cache: Tensor
    block_table: Tensor
    seq_lens: Tensor

    def run(self, form: AttentionForm, hardware: Hardware, **options: Tensor) -> Tensor:
        caches = (cache.transpose(1, 2).contiguous() for cache in (self.key_cache, self.value_cache))
        return decode_attention(self.query, *caches, self.block_table, self.seq_lens, form, hardware, **options)

    def expected(self, form: AttentionForm) -> Tensor:
        """By the definition, in float32."""
        num_sequences = len(self.seq_lens)
        starts = torch.arange(num_sequences + 1, dtype=torch.int32)
        longest = int(self.seq_lens.max())
        metadata = AttentionMetadata(starts, starts, self.seq_lens, self.block_table, 1, longest, num_sequences)
        return reference.paged_attention(self.query.float(), self.key_cache, self.value_cache, metadata, form)


def batch(
    device: torch.device,
    lens: tuple[int, ...],
    heads: tuple[int, int] = (4, 2),
    size: int = 64,
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
    cache_dtype: torch.dtype | None = None,
) -> Batch:
    """Random K and V in blocks in random order; everything else in the caches is NaN, block 0 too."""
    generator = torch.Generator().manual_seed(sum(lens) + size)
    num_heads, num_kv_heads = heads
    max_blocks = max(-(-n // block_size) for n in lens) + 1
    order = torch.randperm(len(lens) * max_blocks, generator=generator).view(len(lens), max_blocks) + 1
    table = torch.full((len(lens), max_blocks), GARBAGE, dtype=torch.int32)
    caches = torch.full((2, len(lens) * max_blocks + 1, block_size, num_kv_heads, size), float("nan"))
    for s, n in enumerate(lens):
        used = -(-n // block_size)
        table[s, :used] = order[s, :used]
        positions = torch.arange(n)
        new = torch.randn(2, n, num_kv_heads, size, generator=generator)
        caches[:, order[s, positions // block_size], positions % block_size] = new
    query = torch.randn(len(lens), num_heads, size, generator=generator).to(dtype)
    key_cache, value_cache = caches.to(cache_dtype or dtype).to(device).unbind()
    lens_tensor = torch.tensor(lens, dtype=torch.int32, device=device)
    return Batch(query.to(device), key_cache, value_cache, table.to(device), lens_tensor)


def force_splits(monkeypatch: pytest.MonkeyPatch, splits: int) -> None:
    monkeypatch.setattr(module, "number_of_splits", lambda *_: splits)


def check(b: Batch, form: AttentionForm, hardware: Hardware, tolerance: float | None = None) -> None:
    found, expected = b.run(form, hardware), b.expected(form)
    assert found.dtype == b.query.dtype and found.shape == expected.shape
    for row, wanted, n in zip(found, expected, b.seq_lens.tolist(), strict=True):
        if n == 0:
            assert torch.equal(row, torch.zeros_like(row))
        else:
            assert relative_error(row, wanted) < (tolerance or TOLERANCE[b.query.dtype])


@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize("block_size", [16, 32, 48, 128])
def test_lengths_around_the_edges_of_blocks(
    device: torch.device, hardware: Hardware, monkeypatch: pytest.MonkeyPatch, block_size: int, splits: int
) -> None:
    force_splits(monkeypatch, splits)
    lens = (1, block_size - 1, 0, block_size, block_size + 1, 131)
    check(batch(device, lens, heads=(2, 1), block_size=block_size), AttentionForm(0.125), hardware)


@pytest.mark.parametrize("splits", [1, 2, 8])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_types_and_splits(
    device: torch.device, hardware: Hardware, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, splits: int
) -> None:
    force_splits(monkeypatch, splits)
    check(batch(device, (3, 0, 197, 64), dtype=dtype), AttentionForm(0.125), hardware)


def test_the_number_of_splits_that_a_gpu_would_take(device: torch.device, hardware: Hardware) -> None:
    check(batch(device, (190,), heads=(4, 1)), AttentionForm(0.125), hardware)


@pytest.mark.parametrize("size", [16, 32, 80, 96, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_head_sizes(
    device: torch.device, hardware: Hardware, monkeypatch: pytest.MonkeyPatch, size: int, dtype: torch.dtype
) -> None:
    force_splits(monkeypatch, 2)
    check(batch(device, (70, 149), heads=(3, 1), size=size, dtype=dtype), AttentionForm(size**-0.5), hardware)


@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize("heads", [(2, 2), (2, 1), (6, 2), (7, 1), (16, 2), (16, 1), (20, 1), (64, 1), (72, 1)])
def test_query_heads_per_kv_head(
    device: torch.device, hardware: Hardware, monkeypatch: pytest.MonkeyPatch, heads: tuple[int, int], splits: int
) -> None:
    force_splits(monkeypatch, splits)
    form = AttentionForm(0.25, sinks=torch.linspace(-1, 3, heads[0], device=device))
    check(batch(device, (1, 140), heads=heads, size=16), form, hardware)


@pytest.mark.parametrize("splits", [1, 2, 8])
@pytest.mark.parametrize("window", [1, 5, 64, 100, 197, 1000])
def test_windows(
    device: torch.device, hardware: Hardware, monkeypatch: pytest.MonkeyPatch, window: int, splits: int
) -> None:
    force_splits(monkeypatch, splits)
    check(batch(device, (3, 100, 197)), AttentionForm(0.125, window=window), hardware)


@pytest.mark.parametrize("splits", [1, 2, 8])
@pytest.mark.parametrize(
    "form",
    [
        AttentionForm(1.0, soft_cap=5.0),
        AttentionForm(1.0, sinks=torch.tensor([-3.0, 0.0, 2.5, 40.0])),
        AttentionForm(1.0, window=70, soft_cap=5.0, sinks=torch.tensor([-3.0, 0.0, 2.5, 4.0])),
    ],
    ids=["cap", "sinks", "all"],
)
def test_caps_and_sinks(
    device: torch.device, hardware: Hardware, monkeypatch: pytest.MonkeyPatch, form: AttentionForm, splits: int
) -> None:
    force_splits(monkeypatch, splits)
    if form.sinks is not None:
        form = dataclasses.replace(form, sinks=form.sinks.to(device))
    check(batch(device, (2, 0, 150)), form, hardware)
    check(batch(device, (2, 0, 150), dtype=torch.bfloat16), form, hardware)


@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("has_float8", [True, False])
def test_e4m3_caches(
    device: torch.device,
    hardware: Hardware,
    monkeypatch: pytest.MonkeyPatch,
    has_float8: bool,
    dtype: torch.dtype,
    splits: int,
) -> None:
    if has_float8 and not hardware.has_float8:
        pytest.skip("this GPU has no e4m3")
    force_splits(monkeypatch, splits)
    hardware = dataclasses.replace(hardware, capability=hardware.capability if has_float8 else 80)
    form = AttentionForm(0.125, window=150, soft_cap=20.0, key_scale=1.5, value_scale=0.25)
    # Products and weights are float16 whatever half type the query is.
    check(batch(device, (5, 0, 170), dtype=dtype, cache_dtype=E4M3), form, hardware)


@pytest.mark.parametrize("size", [16, 80, 256])
def test_e4m3_head_sizes(device: torch.device, hardware: Hardware, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    force_splits(monkeypatch, 2)
    form = AttentionForm(size**-0.5, key_scale=0.5, value_scale=2.0)
    check(batch(device, (70, 149), heads=(3, 1), size=size, cache_dtype=E4M3), form, hardware)


def test_a_query_beyond_float16_with_an_e4m3_cache(
    device: torch.device, hardware: Hardware, monkeypatch: pytest.MonkeyPatch
) -> None:
    force_splits(monkeypatch, 1)
    b = batch(device, (40, 90), dtype=torch.bfloat16, cache_dtype=E4M3)
    b.query *= 1e6
    check(b, AttentionForm(1e-7), hardware)


def test_queries_outputs_and_tables_may_be_strided(
    device: torch.device, hardware: Hardware, monkeypatch: pytest.MonkeyPatch
) -> None:
    for splits in (1, 2):
        force_splits(monkeypatch, splits)
        b = batch(device, (33, 150))
        plain = b.run(AttentionForm(0.125), hardware)
        fused = torch.full((2, 9, 128), float("nan"), device=device)
        fused[:, 1:8:2, :64] = b.query
        wide = torch.full((2, 21), 10**6, dtype=torch.int32, device=device)
        wide[:, : b.block_table.shape[1]] = b.block_table
        out = torch.full((2, 300), float("nan"), device=device)
        strided = dataclasses.replace(b, query=fused[:, 1:8:2, :64], block_table=wide[:, : b.block_table.shape[1]])
        found = strided.run(AttentionForm(0.125), hardware, out=out[:, 3:259])
        assert torch.equal(found, plain)
        assert found.data_ptr() == out[:, 3:].data_ptr()
        assert out[:, :3].isnan().all() and out[:, 259:].isnan().all()


@pytest.mark.parametrize("splits", [1, 4])
def test_a_row_does_not_know_its_mates(
    device: torch.device, hardware: Hardware, monkeypatch: pytest.MonkeyPatch, splits: int
) -> None:
    force_splits(monkeypatch, splits)
    b = batch(device, (150, 7, 64))
    found = b.run(AttentionForm(0.125), hardware)
    for s in range(3):
        alone = Batch(b.query[s:][:1], b.key_cache, b.value_cache, b.block_table[s:][:1], b.seq_lens[s:][:1])
        assert torch.equal(alone.run(AttentionForm(0.125), hardware)[0], found[s])


def test_no_sequences_is_nothing(device: torch.device, hardware: Hardware) -> None:
    b = batch(device, (5,))
    none = Batch(b.query[:0], b.key_cache, b.value_cache, b.block_table[:0], b.seq_lens[:0])
    assert none.run(AttentionForm(0.125), hardware).shape == (0, 256)


def test_splits_fill_the_gpu_and_no_more() -> None:
    gpu = KNOWN[90]
    assert [number_of_splits(gpu, n, 8) for n in (1, 8, 32, 64, 66, 256)] == [MAX_SPLITS, 16, 4, 2, 1, 1]
    for n in range(1, 300):
        for tiles in (1, 2, 8, 32):
            splits = number_of_splits(gpu, n, tiles)
            assert splits == MAX_SPLITS or splits * n * tiles >= 4 * gpu.num_multiprocessors
            assert splits == 1 or splits * n * tiles < 8 * gpu.num_multiprocessors
    assert number_of_splits(gpu, 1, 8, window_tiles=2) == 1
    assert number_of_splits(gpu, 1, 8, window_tiles=64) == 16


_COMPILE = """
import dataclasses, json, torch
from kernels.gpu.ahead_of_time import compile_cases
from kernels.gpu.cases import CompileCase
from kernels.gpu.decode_attention import decode_attention
from kernels.gpu.hardware import KNOWN
from kernels.interface import AttentionForm

def launch(num_sequences, width, window):
    empty = lambda *shape, dtype=torch.bfloat16: torch.empty(shape, dtype=dtype, device="meta")
    table, lens = empty(num_sequences, width, dtype=torch.int32), empty(num_sequences, dtype=torch.int32)
    cache = empty(100, 8, 16, 128)
    query = empty(num_sequences, 48, 128)[:, :32]
    decode_attention(query, cache, cache, table, lens, AttentionForm(0.1, window=window), KNOWN[90])

sizes = [(n, width, window) for n in (1, 2, 7, 16, 33, 64, 65, 128, 255) for width, window in ((1, 0), (64, 4095))]
cases = [CompileCase(str(size), lambda size=size: launch(*size)) for size in sizes]
print(json.dumps([dataclasses.asdict(binary) for binary in compile_cases(90, iter(cases))]))
"""


def test_three_binaries_serve_every_batch_and_keep_two_tiles_under_way() -> None:
    """Compiled for Hopper: whole, split, and joining; batch size, table width and window make no more of them."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", _COMPILE]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=300)
    binaries = {binary["digest"]: binary for binary in json.loads(found.stdout)}
    kernels = sorted(binary["kernel"] for binary in binaries.values())
    assert kernels == ["_decode_attention", "_decode_attention", "_join_splits"]
    shape = tiling(KNOWN[90], 4, 128, torch.bfloat16)
    tile_bytes = shape.tile_keys * shape.tile_size * 2
    for binary in binaries.values():
        if binary["kernel"] == "_decode_attention":
            # Two tiles each of K and V; the queries, weights and maxima beside them are less than one tile more.
            assert 4 * tile_bytes <= binary["shared_bytes"] < 5 * tile_bytes
            assert binary["num_registers"] <= 168 and binary["local_bytes"] == 0
