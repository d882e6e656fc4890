"""The Triton kernels together are a complete `Kernels`; what of it needs neither an engine nor a model."""

import pytest
import torch

from kernels import AttentionForm, AttentionHeads, AttentionMetadata
from kernels.gpu.hardware import Hardware
from kernels.gpu.kernels import TritonKernels
from kernels.reference import ReferenceKernels
from tests.kernels.oracle import relative_error


def test_decodes_and_prompts_of_one_batch_are_written_side_by_side(device: torch.device, hardware: Hardware) -> None:
    kernels, generator = TritonKernels(hardware), torch.Generator().manual_seed(0)
    heads = AttentionHeads(4, 2, 16, None, None, 0.0)
    lens = [(1, 1), (1, 20), (5, 21), (1, 7), (16, 16)]
    metadata = AttentionMetadata(
        slot_mapping=torch.arange(16, 16 + 64, device=device),
        query_start_loc=torch.tensor([0, 1, 2, 7, 8, 24], dtype=torch.int32, device=device),
        seq_lens=torch.tensor([seq_len for _, seq_len in lens], dtype=torch.int32, device=device),
        block_table=torch.tensor([[3, 0], [1, 4], [2, 3], [4, 0], [1, 0]], dtype=torch.int32, device=device),
        max_query_len=16,
        max_seq_len=21,
        num_decodes=2,
    )
    qkv = torch.randn(64, 8 * 16, generator=generator).to(device)
    tables = kernels.rope_tables(torch.arange(64, device=device), torch.ones(8, device=device) * 0.1, 1.0)
    results = []
    for candidate in (kernels, ReferenceKernels()):
        cache = tuple(torch.zeros(shape, device=device) for shape in candidate.kv_cache_shapes(5, 16, 2, 16))
        query = candidate.pack_heads(heads)(qkv.clone(), tables, cache, metadata.slot_mapping)[:24]
        plan = candidate.plan_attention(metadata)
        results.append(candidate.paged_attention(query, *cache, plan, AttentionForm(0.25)))
    assert relative_error(*results) < 1e-5


def test_columns_of_a_gathered_table_are_read_with_their_stride(device: torch.device, hardware: Hardware) -> None:
    """What the engine gathers per row or token may be a column of a wider array."""
    kernels, generator = TritonKernels(hardware), torch.Generator().manual_seed(1)
    columns = torch.tensor([[1, 9, 5], [2, 30, 17], [3, 4, 2]], device=device)
    positions, slots = columns[:, 1], columns[:, 2]
    frequencies = torch.rand(16, generator=generator).to(device)[::2]
    qkv = torch.randn(3, 4 * 16, generator=generator).to(device)
    logits = torch.randn(3, 40, generator=generator).to(device)
    results = []
    for candidate in (kernels, ReferenceKernels()):
        tables = candidate.rope_tables(positions, frequencies, 1.0)
        wide = torch.cat(tables, -1).chunk(2, -1)
        cache = tuple(torch.zeros(shape, device=device) for shape in candidate.kv_cache_shapes(2, 16, 1, 16))
        step = candidate.pack_heads(AttentionHeads(2, 1, 16, None, None, 0.0))
        query = step(qkv.clone(), (wide[0], wide[1]), (cache[0], cache[1]), slots)
        chosen = candidate.logprobs(logits, columns[:, 0], 2).chosen
        # With one KV head the two layouts of a cache are the same bytes.
        results.append(torch.cat([x.flatten() for x in (*tables, query, *cache, chosen)]))
    assert relative_error(*results) < 1e-5


def test_what_there_is_no_room_for_is_refused(device: torch.device, hardware: Hardware) -> None:
    kernels = TritonKernels(hardware)
    for head_dim in (257, 63, 512):
        with pytest.raises(ValueError, match="not supported"):
            kernels.pack_heads(AttentionHeads(2, 2, head_dim, None, None, 0.0))
    with pytest.raises(TypeError):
        kernels.paged_attention(torch.zeros(1, 2, 16), torch.empty(0), torch.empty(0), object(), AttentionForm(1.0))
