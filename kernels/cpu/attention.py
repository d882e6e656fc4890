"""Paged attention on the CPU: gather a sequence's blocks into a buffer that stays, then one fused attention per group.

The query heads that share a key/value head are laid out as query rows (decode) or as a batch (prefill) of it: asking
torch to repeat the keys instead costs nine times as much in bfloat16: docs/decisions/0005-cpu-linear-and-attention.md.

- Decode rows, one query token each, go together, in groups of similar length so that little padding is computed.
- A longer chunk goes alone, in tiles of query tokens, each as two parts: the keys before the tile, which every query
  sees, and the tile's own, which are causal. Their results merge by log-sum-exp, so no mask of queries times keys is
  ever built, and keys that a tile does not see cost nothing (a fifth faster than one call at 512 tokens).

Softmax and sums are float32 inside torch's fused kernel. A masked key has weight 0, and 0 * NaN is NaN: the caches must
hold finite numbers wherever a block table points, so they start as zeros. Must not know sequences or layers.
"""

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels.interface import AttentionMetadata

# Rows are computed at the longest length of their group. A shorter row joins while it wastes at most this share of it,
# or while the group is so short that another call costs more than the padding.
_MAX_WASTE = 0.25
_SHORT_TOKENS = 256
_TILE_TOKENS = 128


@dataclasses.dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Sequences with one query token. rows: their tokens in the batch, None for all, in order.

    block_ids: [num_rows * num_blocks]. max_len: keys to read. mask: float32 [num_rows, 1, 1, max_len] or None where
    every row has max_len keys.
    """

    rows: Tensor | None
    num_rows: int
    block_ids: Tensor
    max_len: int
    mask: Tensor | None


@dataclasses.dataclass(frozen=True, slots=True)
class Chunk:
    """One sequence with query tokens [start, end) of the batch and `seq_len` keys in `block_ids`."""

    start: int
    end: int
    seq_len: int
    block_ids: Tensor


@dataclasses.dataclass(frozen=True, slots=True)
class CpuAttentionPlan:
    """The work of one step, the same for each layer."""

    groups: tuple[DecodeGroup, ...]
    chunks: tuple[Chunk, ...]


def plan(metadata: AttentionMetadata, block_size: int) -> CpuAttentionPlan:
    """Split a batch into decode groups and chunks; reads the metadata on the host."""
    starts = metadata.query_start_loc.numpy()
    seq_lens = metadata.seq_lens.numpy()
    table = metadata.block_table.numpy()
    query_lens = np.diff(starts)
    if int(query_lens.max(initial=1)) == 1:
        return CpuAttentionPlan(_decode_groups(None, seq_lens, table, block_size), ())
    chunks = tuple(
        Chunk(
            int(starts[s]),
            int(starts[s + 1]),
            int(seq_lens[s]),
            torch.from_numpy(table[s, : -(-int(seq_lens[s]) // block_size)].copy()),
        )
        for s in np.flatnonzero(query_lens > 1)
    )
    decoding = np.flatnonzero(query_lens == 1)
    groups = _decode_groups(starts[decoding], seq_lens[decoding], table[decoding], block_size)
    return CpuAttentionPlan(groups, chunks)


def _decode_groups(
    rows: np.ndarray[Any, Any] | None,
    seq_lens: np.ndarray[Any, Any],
    table: np.ndarray[Any, Any],
    block_size: int,
) -> tuple[DecodeGroup, ...]:
    """`rows[i]` is the token of the sequence with seq_lens[i] and table[i]; None when token i is sequence i."""
    if len(seq_lens) == 0:
        return ()
    longest = int(seq_lens.max())
    if len(seq_lens) == 1 or _may_join(int(seq_lens.min()), longest):
        return (_group(rows, seq_lens, table, block_size),)
    order = np.argsort(-seq_lens, kind="stable")
    descending = seq_lens[order]
    groups: list[DecodeGroup] = []
    start = 0
    while start < len(order):
        longest = int(descending[start])
        # The lengths fall, so those that may join are a prefix of the rest.
        end = start + sum(1 for length in descending[start:].tolist() if _may_join(length, longest))
        members = order[start:end]
        groups.append(_group(members if rows is None else rows[members], seq_lens[members], table[members], block_size))
        start = end
    return tuple(groups)


def _may_join(length: int, longest: int) -> bool:
    return longest <= _SHORT_TOKENS or longest - length <= _MAX_WASTE * longest


def _group(
    rows: np.ndarray[Any, Any] | None,
    seq_lens: np.ndarray[Any, Any],
    table: np.ndarray[Any, Any],
    block_size: int,
) -> DecodeGroup:
    max_len = int(seq_lens.max())
    mask = None
    if int(seq_lens.min()) < max_len:
        hidden = np.arange(max_len) >= seq_lens[:, None]
        mask = torch.from_numpy(np.where(hidden, np.float32(-np.inf), np.float32(0)))[:, None, None, :]
    return DecodeGroup(
        rows=None if rows is None else torch.from_numpy(np.ascontiguousarray(rows, dtype=np.int64)),
        num_rows=len(seq_lens),
        block_ids=torch.from_numpy(table[:, : -(-max_len // block_size)].reshape(-1).copy()),
        max_len=max_len,
        mask=mask,
    )


class PagedAttention:
    """The computation, with its gather buffers: they grow by doubling and stay, since fresh pages are slow to touch.

    Not for two threads at once.
    """

    def __init__(self) -> None:
        self._keys = torch.empty(0)
        self._values = torch.empty(0)

    def __call__(
        self, query: Tensor, key_cache: Tensor, value_cache: Tensor, plan: CpuAttentionPlan, scale: float
    ) -> Tensor:
        """See `reference.paged_attention`; query [T, H, D] to [T, H * D]."""
        num_tokens, num_heads, head_dim = query.shape
        if not plan.chunks and len(plan.groups) == 1:
            rows = self._decode(query, key_cache, value_cache, plan.groups[0], scale)
            return rows.reshape(num_tokens, num_heads * head_dim)
        out = torch.empty(num_tokens, num_heads, head_dim, dtype=query.dtype)
        for group in plan.groups:
            picked = query if group.rows is None else query.index_select(0, group.rows)
            result = self._decode(picked, key_cache, value_cache, group, scale).reshape(-1, num_heads, head_dim)
            if group.rows is None:
                out.copy_(result)
            else:
                out.index_copy_(0, group.rows, result)
        for chunk in plan.chunks:
            out[chunk.start : chunk.end] = self._chunk(
                query[chunk.start : chunk.end], key_cache, value_cache, chunk, scale
            )
        return out.view(num_tokens, num_heads * head_dim)

    def _decode(
        self, query: Tensor, key_cache: Tensor, value_cache: Tensor, group: DecodeGroup, scale: float
    ) -> Tensor:
        """[rows, H, D] to [rows, Hkv, H / Hkv, D]: the heads of a key/value head are its query rows."""
        keys, values = self._gather(key_cache, value_cache, group.block_ids)
        num_kv_heads, head_dim = keys.shape[-2:]
        shape = (group.num_rows, -1, num_kv_heads, head_dim)
        keys = keys.view(shape)[:, : group.max_len].transpose(1, 2)
        values = values.view(shape)[:, : group.max_len].transpose(1, 2)
        packed = query.view(group.num_rows, num_kv_heads, -1, head_dim)
        return _attend(packed, keys, values, scale, mask=group.mask)[0]

    def _chunk(self, query: Tensor, key_cache: Tensor, value_cache: Tensor, chunk: Chunk, scale: float) -> Tensor:
        """[n, H, D] to [n, H, D] for one sequence's n tokens: the heads of a key/value head are a batch over it."""
        keys, values = self._gather(key_cache, value_cache, chunk.block_ids)
        num_tokens, num_heads, head_dim = query.shape
        num_kv_heads = keys.shape[-2]
        group_size = num_heads // num_kv_heads
        # [H / Hkv, Hkv, tokens, D] for all three; the keys' first dimension is a stride of 0, not a copy.
        packed = query.view(num_tokens, num_kv_heads, group_size, head_dim).permute(2, 1, 0, 3)
        keys, values = (
            kv.view(-1, num_kv_heads, head_dim)[: chunk.seq_len].transpose(0, 1).expand(group_size, -1, -1, -1)
            for kv in (keys, values)
        )
        before = chunk.seq_len - num_tokens
        tiles = [
            _attend_tile(packed[:, :, start : start + _TILE_TOKENS], keys, values, before + start, scale)
            for start in range(0, num_tokens, _TILE_TOKENS)
        ]
        out = tiles[0] if len(tiles) == 1 else torch.cat(tiles, 2)
        return out.permute(2, 1, 0, 3).reshape(num_tokens, num_heads, head_dim)

    def _gather(self, key_cache: Tensor, value_cache: Tensor, block_ids: Tensor) -> tuple[Tensor, Tensor]:
        """The blocks' K and V, [num_ids, block_size, Hkv, D] each, in buffers that the next call overwrites."""
        shape = (block_ids.shape[0], *key_cache.shape[1:])
        size = block_ids.shape[0] * key_cache[0].numel()
        if self._keys.numel() < size or self._keys.dtype != key_cache.dtype:
            grown = max(size, 2 * self._keys.numel() if self._keys.dtype == key_cache.dtype else 0)
            self._keys = torch.empty(grown, dtype=key_cache.dtype)
            self._values = torch.empty(grown, dtype=key_cache.dtype)
        keys, values = self._keys[:size].view(shape), self._values[:size].view(shape)
        torch.index_select(key_cache, 0, block_ids, out=keys)
        torch.index_select(value_cache, 0, block_ids, out=values)
        return keys, values


def _attend_tile(query: Tensor, keys: Tensor, values: Tensor, before: int, scale: float) -> Tensor:
    """Causal attention of n queries [B, heads, n, D] that follow `before` keys, over [B, heads, keys, D]."""
    end = before + query.shape[2]
    out, weight = _attend(query, keys[:, :, before:end], values[:, :, before:end], scale, is_causal=True)
    if before == 0:
        return out
    past, past_weight = _attend(query, keys[:, :, :before], values[:, :, :before], scale)
    # Both weights are log-sum-exp: sigmoid of their difference is the past's share of the softmax's sum.
    share = torch.sigmoid(past_weight - weight)[..., None]
    return torch.lerp(out.float(), past.float(), share).to(query.dtype)


def _attend(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    scale: float,
    *,
    is_causal: bool = False,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Attention of [B, heads, queries, D] over [B, heads, keys, D] and its float32 log-sum-exp [B, heads, queries]."""
    out, log_sum_exp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default(
        query, keys, values, 0.0, is_causal, attn_mask=mask, scale=scale
    )
    return out, log_sum_exp
