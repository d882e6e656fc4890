"""What the tests on a GPU share: paged batches of real size, graphs, and the guard against waiting."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest
import torch
from torch import Tensor

from kernels import AttentionForm, AttentionMetadata, reference

# Of results in bfloat16 against float32 ones: rounding of the result and of the probabilities, 1.1e-3 in norm each.
TOLERANCE = 5e-3
NUM_INT32 = 2**31
Result = TypeVar("Result")


def needs_memory(gib: float) -> None:
    """Skip where the GPU has less free memory."""
    free, _ = torch.cuda.mem_get_info()
    if free < gib * 2**30:
        pytest.skip(f"needs {gib} GiB of free GPU memory, there are {free / 2**30:.1f}")


@contextlib.contextmanager
def without_waiting() -> Iterator[None]:
    """Any wait of the host for the GPU that torch knows of is an error: `.item()`, a copy, a boolean index."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def captured(call: Callable[[], Result]) -> tuple[torch.cuda.CUDAGraph, Result]:
    """(a graph of the call, its result, which every replay writes anew). One call before it compiles and loads."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        call()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = call()
    return graph, result


@dataclasses.dataclass(frozen=True)
class Batch:
    """Sequences whose keys and values lie in a cache [blocks, Hkv, block_size, D]; all other blocks are NaN."""

    query: Tensor
    key_cache: Tensor
    value_cache: Tensor
    metadata: AttentionMetadata

    def expected(self, form: AttentionForm) -> Tensor:
        """`reference.paged_attention`, [T, H * D] in float32."""
        caches = (cache.transpose(1, 2) for cache in (self.key_cache, self.value_cache))
        return reference.paged_attention(self.query.float(), *caches, self.metadata, form)


def batch(
    lens: list[tuple[int, int]],
    device: torch.device,
    *,
    heads: tuple[int, int, int] = (32, 8, 128),
    block_size: int = 16,
    num_blocks: int = 0,
    cache_dtype: torch.dtype = torch.bfloat16,
) -> Batch:
    """lens: (query length, sequence length) each. num_blocks: of the cache, whose last blocks are those that are used;
    at least as many as it takes."""
    num_heads, num_kv_heads, head_dim = heads
    counts = [-(-seq_len // block_size) for _, seq_len in lens]
    num_used = sum(counts)
    num_blocks = max(num_blocks, 1 + num_used)
    order = num_blocks - num_used + torch.randperm(num_used, device=device)
    table = torch.full((len(lens), max(counts)), 2**30, dtype=torch.int32, device=device)
    for s, blocks in enumerate(order.split(counts)):
        table[s, : len(blocks)] = blocks
    shape = (num_blocks, num_kv_heads, block_size, head_dim)
    starts = torch.tensor([0, *(query_len for query_len, _ in lens)]).cumsum(0).to(torch.int32)
    metadata = AttentionMetadata(
        slot_mapping=torch.empty(0, dtype=torch.int64, device=device),
        query_start_loc=starts.to(device),
        seq_lens=torch.tensor([seq_len for _, seq_len in lens], dtype=torch.int32, device=device),
        block_table=table,
        max_query_len=max(query_len for query_len, _ in lens),
        max_seq_len=max(seq_len for _, seq_len in lens),
    )
    query = torch.randn(int(starts[-1]), num_heads, head_dim, device=device).to(torch.bfloat16)
    caches = [_cache(shape, order, cache_dtype, device) for _ in range(2)]
    return Batch(query, *caches, metadata)


def _cache(shape: tuple[int, ...], used: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    content = torch.randn(len(used), *shape[1:], dtype=torch.bfloat16, device=device).to(dtype)
    if dtype == torch.float8_e4m3fn:
        cache = torch.full(shape, 0x7F, dtype=torch.uint8, device=device)  # e4m3's NaN
        cache[used] = content.view(torch.uint8)
        return cache.view(dtype)
    cache = torch.full(shape, float("nan"), dtype=dtype, device=device)
    cache[used] = content
    return cache
