"""The work that the GPU benchmarks time: each kernel's inputs, its bytes and operations, and torch's way beside it.

Bytes are the fewest that the work must move: each input read once, each output written once. A kernel's module is
imported when its work is made, so that one that cannot be loaded fails alone. Must not know clocks or bars.
"""

import dataclasses
import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu_timing import Call, num_sets
from kernels import AttentionForm, AttentionHeads, reference
from kernels.gpu.hardware import Hardware


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """Where work is made. cache_bytes: the GPU's L2, 0 for no rotation; block_size: tokens of a block of the cache."""

    device: torch.device
    hardware: Hardware
    cache_bytes: int
    block_size: int

    def random(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        """Standard normal numbers; e4m3 by way of bfloat16."""
        if dtype == torch.float8_e4m3fn:
            return torch.randn(shape, dtype=torch.bfloat16, device=self.device).to(dtype)
        return torch.randn(shape, dtype=dtype, device=self.device)


@dataclasses.dataclass(frozen=True, slots=True)
class Heads:
    """Of an attention layer."""

    num_heads: int
    num_kv_heads: int
    head_dim: int


@dataclasses.dataclass(frozen=True, slots=True)
class Work:
    """The same work by our kernel and by torch, one call for each set of inputs.

    peer: None where torch has no such form. error: relative error of our result on the first set, to be asked before
    anything is timed, because some kernels write over their inputs.
    """

    ours: list[Call]
    peer: list[Call] | None
    num_bytes: int
    num_flops: int
    error: Callable[[], float]


def launcher(module: str, name: str) -> Any:
    """A launcher, or a class, of one of `kernels.gpu`'s modules, loaded now."""
    return getattr(importlib.import_module(f"kernels.gpu.{module}"), name)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what is expected; NaN and infinity pass nothing."""
    difference = (found.double() - expected.double()).norm() / expected.double().norm()
    return float(difference) if bool(difference.isfinite()) else float("inf")


@dataclasses.dataclass(frozen=True, slots=True)
class _Cache:
    """Paged keys and values [blocks, Hkv, block_size, D] of equally long sequences, in blocks of no order."""

    key: Tensor
    value: Tensor
    block_table: Tensor
    length: int

    @classmethod
    def of(cls, place: Place, heads: Heads, num_seqs: int, length: int, dtype: torch.dtype) -> "_Cache":
        per_seq = -(-length // place.block_size)
        shape = (1 + num_seqs * per_seq, heads.num_kv_heads, place.block_size, heads.head_dim)
        order = 1 + torch.randperm(num_seqs * per_seq, device=place.device)  # block 0 is the null block
        table = order.to(torch.int32).view(num_seqs, per_seq)
        return cls(place.random(*shape, dtype=dtype), place.random(*shape, dtype=dtype), table, length)

    def gathered(self, sequence: int) -> tuple[Tensor, Tensor]:
        """One sequence's keys and values, float32 [Hkv, length, D]."""
        blocks = self.block_table[sequence].long()
        return self._ordered(self.key, blocks), self._ordered(self.value, blocks)

    def _ordered(self, cache: Tensor, blocks: Tensor) -> Tensor:
        raw = cache.view(torch.uint8)[blocks].view(cache.dtype)
        return raw.float().transpose(0, 1).flatten(1, 2)[:, : self.length]

    def as_contiguous(self) -> tuple[Tensor, Tensor]:
        """The same memory as [S, Hkv, length, D], for torch: other numbers per sequence, the same bytes."""
        num_seqs, per_seq = self.block_table.shape
        _, num_kv_heads, block_size, head_dim = self.key.shape
        shape = (num_seqs, num_kv_heads, per_seq * block_size, head_dim)
        key, value = (cache[1:].view(shape)[:, :, : self.length] for cache in (self.key, self.value))
        return key, value


def decode_attention(place: Place, heads: Heads, num_seqs: int, length: int, cache_dtype: torch.dtype) -> Work:
    """One new token per sequence. Torch: SDPA on contiguous keys, the queries of a group as the rows of one head."""
    run = launcher("decode_attention", "decode_attention")
    group = heads.num_heads // heads.num_kv_heads
    is_float8 = cache_dtype == torch.float8_e4m3fn
    form = AttentionForm(heads.head_dim**-0.5, key_scale=0.5 if is_float8 else 1.0, value_scale=2.0 if is_float8 else 1)
    kv_bytes = 2 * num_seqs * length * heads.num_kv_heads * heads.head_dim * cache_dtype.itemsize
    io_bytes = 2 * num_seqs * heads.num_heads * heads.head_dim * 2
    seq_lens = torch.full((num_seqs,), length, dtype=torch.int32, device=place.device)
    sets = []
    for _ in range(num_sets(kv_bytes, place.cache_bytes)):
        query = place.random(num_seqs, heads.num_heads, heads.head_dim)
        sets.append((query, _Cache.of(place, heads, num_seqs, length, cache_dtype)))

    def ours(query: Tensor, cache: _Cache) -> Any:
        return run(query, cache.key, cache.value, cache.block_table, seq_lens, form, place.hardware)

    def peer(query: Tensor, cache: _Cache) -> Tensor:
        rows = query.view(num_seqs, heads.num_kv_heads, group, heads.head_dim)
        return F.scaled_dot_product_attention(rows, *cache.as_contiguous(), scale=form.scale)

    def error() -> float:
        query, cache = sets[0]
        last = num_seqs - 1
        key, value = cache.gathered(last)
        rows = query[last].float().view(heads.num_kv_heads, group, heads.head_dim)
        weights = (rows @ key.transpose(1, 2) * (form.scale * form.key_scale)).softmax(-1)
        return relative_error(ours(query, cache)[last].flatten(), (weights @ value * form.value_scale).flatten())

    return Work(
        ours=[functools.partial(ours, *one) for one in sets],
        peer=None if is_float8 else [functools.partial(peer, *one) for one in sets],
        num_bytes=kv_bytes + io_bytes + sets[0][1].block_table.numel() * 4,
        num_flops=4 * num_seqs * length * heads.num_heads * heads.head_dim,
        error=error,
    )


def prefill_attention(place: Place, heads: Heads, num_seqs: int, length: int) -> Work:
    """Whole prompts, causal. Torch: SDPA on contiguous keys and values, repeated for each query head beforehand."""
    run = launcher("prefill_attention", "prefill_attention")
    form = AttentionForm(heads.head_dim**-0.5)
    cache = _Cache.of(place, heads, num_seqs, length, torch.bfloat16)
    query = place.random(num_seqs * length, heads.num_heads, heads.head_dim)
    starts = torch.arange(0, (num_seqs + 1) * length, length, dtype=torch.int32, device=place.device)
    seq_lens = torch.full((num_seqs,), length, dtype=torch.int32, device=place.device)
    group = heads.num_heads // heads.num_kv_heads
    ordered = [cache.gathered(sequence) for sequence in range(num_seqs)]
    keys, values = (
        torch.stack(list(parts)).repeat_interleave(group, 1).to(torch.bfloat16) for parts in zip(*ordered, strict=True)
    )
    rows = query.view(num_seqs, length, heads.num_heads, heads.head_dim).transpose(1, 2).contiguous()

    def ours() -> Any:
        return run(query, cache.key, cache.value, starts, seq_lens, cache.block_table, form, place.hardware)

    def peer() -> Tensor:
        return F.scaled_dot_product_attention(rows, keys, values, is_causal=True, scale=form.scale)

    kv_elements = 2 * num_seqs * length * heads.num_kv_heads * heads.head_dim
    return Work(
        ours=[ours],
        peer=[peer],
        num_bytes=2 * (2 * query.numel() + kv_elements),
        # Two products of two operations each, for the half of the pairs that causality leaves.
        num_flops=2 * num_seqs * length * (length + 1) * heads.num_heads * heads.head_dim,
        error=lambda: relative_error(ours().flatten(), peer().transpose(1, 2).flatten()),
    )


def add_rms_norm(place: Place, num_tokens: int, size: int) -> Work:
    """The residual's addition and the norm. Torch: an addition and `rms_norm`."""
    run = launcher("norm", "add_rms_norm")
    weight = place.random(size)
    num_bytes = 2 * (4 * num_tokens * size + size)
    sets = [
        (place.random(num_tokens, size), place.random(num_tokens, size))
        for _ in range(num_sets(num_bytes, place.cache_bytes))
    ]

    def peer(x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        total = x + residual
        return F.rms_norm(total, (size,), weight, 1e-6), total

    def error() -> float:
        x, residual = sets[0]
        expected, _ = reference.add_rms_norm(x, residual, weight, 1e-6)
        return relative_error(run(x, residual.clone(), weight, 1e-6)[0], expected)

    return Work(
        ours=[functools.partial(run, *one, weight, 1e-6) for one in sets],
        peer=[functools.partial(peer, *one) for one in sets],
        num_bytes=num_bytes,
        num_flops=0,
        error=error,
    )


def rotate_and_store(place: Place, heads: Heads, num_tokens: int, *, has_norms: bool) -> Work:
    """Between projection and attention, a prompt's tokens. Torch: `reference`'s steps, and two indexed writes."""
    every = heads.num_heads + 2 * heads.num_kv_heads
    norms = [place.random(heads.head_dim) if has_norms else None for _ in range(2)]
    layer = AttentionHeads(heads.num_heads, heads.num_kv_heads, heads.head_dim, norms[0], norms[1], 1e-6)
    run = launcher("rope", "RotateAndStore")(layer)
    inv_freq = 500_000.0 ** (-torch.arange(0, heads.head_dim, 2, device=place.device) / heads.head_dim)
    positions = torch.arange(num_tokens, device=place.device)
    tables = launcher("rope", "rope_tables")(positions, inv_freq, 1.0)
    elements = num_tokens * heads.head_dim * 2 * every
    num_bytes = 2 * elements + num_tokens * (4 * heads.head_dim + 8)
    sets = []
    for _ in range(num_sets(num_bytes, place.cache_bytes)):
        cache = _Cache.of(place, heads, 1, num_tokens, torch.bfloat16)
        blocks, offsets = cache.block_table[0].long()[positions // place.block_size], positions % place.block_size
        sets.append((place.random(num_tokens, every * heads.head_dim), cache, blocks, offsets))

    def ours(qkv: Tensor, cache: _Cache, blocks: Tensor, offsets: Tensor, slots: Tensor) -> Any:
        return run(qkv, tables, (cache.key, cache.value), slots)

    def peer(qkv: Tensor, cache: _Cache, blocks: Tensor, offsets: Tensor) -> Tensor:
        parts = qkv.view(num_tokens, every, heads.head_dim)
        query, key, value = parts.tensor_split((heads.num_heads, heads.num_heads + heads.num_kv_heads), 1)
        if layer.query_norm is not None and layer.key_norm is not None:
            query = reference.rms_norm(query, layer.query_norm, layer.eps)
            key = reference.rms_norm(key, layer.key_norm, layer.eps)
        cache.key[blocks, :, offsets] = reference.apply_rope(key, tables)
        cache.value[blocks, :, offsets] = value
        return reference.apply_rope(query, tables)

    def error() -> float:
        qkv, cache, blocks, offsets = sets[0]
        query = peer(qkv, cache, blocks, offsets)
        expected = [query.clone(), cache.key[blocks, :, offsets], cache.value[blocks, :, offsets]]
        cache.key.fill_(float("nan"))
        cache.value.fill_(float("nan"))
        found = ours(qkv.clone(), cache, blocks, offsets, blocks * place.block_size + offsets)
        results = [found, cache.key[blocks, :, offsets], cache.value[blocks, :, offsets]]
        return max(relative_error(a.flatten(), b.flatten()) for a, b in zip(results, expected, strict=True))

    slots = [blocks * place.block_size + offsets for _, _, blocks, offsets in sets]
    return Work(
        ours=[functools.partial(ours, *one, at) for one, at in zip(sets, slots, strict=True)],
        peer=[functools.partial(peer, *one) for one in sets],
        num_bytes=num_bytes,
        num_flops=0,
        error=error,
    )


def silu_and_mul(place: Place, num_tokens: int, width: int) -> Work:
    """SwiGLU's middle. Torch: `silu` and a product."""
    run = launcher("activation", "silu_and_mul")
    num_bytes = 2 * 3 * num_tokens * width
    sets = [place.random(num_tokens, 2 * width) for _ in range(num_sets(num_bytes, place.cache_bytes))]

    def peer(gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, -1)
        return F.silu(gate) * up

    return Work(
        ours=[functools.partial(run, one) for one in sets],
        peer=[functools.partial(peer, one) for one in sets],
        num_bytes=num_bytes,
        num_flops=0,
        error=lambda: relative_error(run(sets[0]), reference.silu_and_mul(sets[0])),
    )


def product(place: Place, num_rows: int, n: int, k: int, config: Any = None) -> Work:
    """`skinny_matmul` beside cuBLAS. config: None is the default."""
    run = launcher("linear", "skinny_matmul")
    num_bytes = 2 * (n * k + num_rows * (n + k))
    sets = [
        (place.random(num_rows, k), place.random(n, k) * k**-0.5) for _ in range(num_sets(num_bytes, place.cache_bytes))
    ]

    def error() -> float:
        x, weight = sets[0]
        return relative_error(run(x, weight, None, place.hardware, config), reference.linear(x, weight, None))

    return Work(
        ours=[functools.partial(run, *one, None, place.hardware, config) for one in sets],
        peer=[functools.partial(F.linear, *one) for one in sets],
        num_bytes=num_bytes,
        num_flops=2 * num_rows * n * k,
        error=error,
    )
