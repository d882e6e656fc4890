"""Paged attention on the CPU: the launcher of native/attention.c, where the computation and its layout are described.

Plans once per step which (sequence, tile of query tokens) items there are. Must not know sequences or layers.
"""

import ctypes
import dataclasses

import numpy as np
import torch
from torch import Tensor

from kernels.cpu.native import Attention, Native
from kernels.interface import AttentionMetadata

_LANES = 16
MAX_HEAD_DIM = 256


def padded_dim(head_dim: int) -> int:
    """The head dimension as the caches hold it: a multiple of a vector's 16 lanes."""
    return -(-head_dim // _LANES) * _LANES


@dataclasses.dataclass(frozen=True, slots=True)
class CpuAttentionPlan:
    """One step's batch."""

    metadata: AttentionMetadata


class PagedAttention:
    """The computation. Keeps the list of work items of the step that it saw last."""

    def __init__(self, native: Native) -> None:
        self._native = native
        self._work_of: tuple[object, int] = (None, 0)
        self._work = np.empty((0, 2), dtype=np.int32)

    def __call__(
        self, query: Tensor, key_cache: Tensor, value_cache: Tensor, plan: CpuAttentionPlan, scale: float
    ) -> Tensor:
        """See `reference.paged_attention`; query [T, H, D], its tokens possibly strided, to [T, H * D]."""
        num_tokens, num_heads, head_dim = query.shape
        if query.stride(2) != 1 or query.stride(1) != head_dim:
            query = query.contiguous()
        metadata = plan.metadata
        num_kv_heads, block_size = key_cache.shape[1], key_cache.shape[3]
        tile_tokens = max(1, self._native.max_tile_rows // (num_heads // num_kv_heads))
        work = self._work_items(metadata, tile_tokens)
        out = torch.empty((num_tokens, num_heads * head_dim), dtype=query.dtype)
        arguments = Attention(
            num_heads, num_kv_heads, head_dim, padded_dim(head_dim), block_size, num_tokens,
            metadata.seq_lens.shape[0], metadata.block_table.stride(0), query.stride(0), scale, query.data_ptr(),
            key_cache.data_ptr(), value_cache.data_ptr(), metadata.query_start_loc.data_ptr(),
            metadata.seq_lens.data_ptr(), metadata.block_table.data_ptr(), out.data_ptr(),
        )  # fmt: skip
        self._native.paged_attention(
            query.dtype == torch.bfloat16, ctypes.byref(arguments), work.ctypes.data, len(work), tile_tokens
        )
        return out

    def _work_items(self, metadata: AttentionMetadata, tile_tokens: int) -> np.ndarray:
        """[items, 2]: (sequence, tile of query tokens), the longest work first."""
        if self._work_of[0] is metadata and self._work_of[1] == tile_tokens:
            return self._work
        query_lens = np.diff(metadata.query_start_loc.numpy())
        tiles = -(-query_lens // tile_tokens)
        owner = np.arange(len(tiles), dtype=np.int32).repeat(tiles)
        index = np.arange(len(owner)) - (tiles.cumsum() - tiles).repeat(tiles)
        keys = metadata.seq_lens.numpy()[owner] - query_lens[owner] + index * tile_tokens
        work = np.stack((owner, index), 1).astype(np.int32)[np.argsort(-keys, kind="stable")]
        self._work, self._work_of = work, (metadata, tile_tokens)
        return work
