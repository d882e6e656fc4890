"""Attention over long contexts and large caches, replayed with other lengths than it was captured with."""

import dataclasses
import itertools

import pytest
import torch

from kernels import AttentionForm
from kernels.gpu.hardware import Hardware
from tests.gpu.support import NUM_INT32, TOLERANCE, batch, captured, needs_memory
from tests.kernels.oracle import relative_error

SCALE = 128**-0.5
# One more block than 2^31 elements of [Hkv, block_size, D] = [8, 16, 128] take, and the blocks that the tests use.
PAST_INT32 = NUM_INT32 // (8 * 16 * 128) + 400


def forms(num_heads: int, device: torch.device) -> dict[str, AttentionForm]:
    sinks = torch.linspace(-2.0, 2.0, num_heads, device=device)
    return {
        "plain": AttentionForm(SCALE),
        "all": AttentionForm(SCALE, window=5000, soft_cap=30.0, sinks=sinks),
    }


def assert_each_near(found: torch.Tensor, expected: torch.Tensor, starts: torch.Tensor) -> None:
    """Sequence by sequence: the error of a short one would drown in the others' norm."""
    bounds = starts.tolist()
    for start, end in itertools.pairwise(bounds):
        assert relative_error(found[start:end], expected[start:end]) < TOLERANCE, f"tokens {start} to {end}"


@pytest.mark.parametrize("name", ["plain", "all"])
def test_decode_over_65536_tokens(device: torch.device, hardware: Hardware, name: str) -> None:
    from kernels.gpu.decode_attention import decode_attention

    work = batch([(1, 65536), (1, 1), (1, 65521), (1, 4097), (1, 17)], device)
    form, metadata = forms(32, device)[name], work.metadata
    found = decode_attention(
        work.query, work.key_cache, work.value_cache, metadata.block_table, metadata.seq_lens, form, hardware
    )
    assert_each_near(found.view(5, -1), work.expected(form), metadata.query_start_loc)


@pytest.mark.parametrize("num_sequences", [1, 3, 64, 300])
def test_decode_of_any_number_of_sequences(device: torch.device, hardware: Hardware, num_sequences: int) -> None:
    from kernels.gpu.decode_attention import decode_attention

    work = batch([(1, 1 + 97 * s % 2000) for s in range(num_sequences)], device)
    form, metadata = AttentionForm(SCALE), work.metadata
    found = decode_attention(
        work.query, work.key_cache, work.value_cache, metadata.block_table, metadata.seq_lens, form, hardware
    )
    assert_each_near(found.view(num_sequences, -1), work.expected(form), metadata.query_start_loc)


@pytest.mark.parametrize("cache_dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_decode_from_blocks_past_int32(device: torch.device, hardware: Hardware, cache_dtype: torch.dtype) -> None:
    from kernels.gpu.decode_attention import decode_attention

    needs_memory(12)
    work = batch([(1, 1000), (1, 3333)], device, num_blocks=PAST_INT32, cache_dtype=cache_dtype)
    form, metadata = AttentionForm(SCALE, key_scale=0.5, value_scale=2.0), work.metadata
    if cache_dtype == torch.bfloat16:
        form = AttentionForm(SCALE)
    assert int(metadata.block_table[1].min()) * 8 * 16 * 128 >= NUM_INT32
    found = decode_attention(
        work.query, work.key_cache, work.value_cache, metadata.block_table, metadata.seq_lens, form, hardware
    )
    assert_each_near(found.view(2, -1), work.expected(form), metadata.query_start_loc)


@pytest.mark.parametrize("num_sequences", [2, 8, 256])
def test_decode_replayed_with_other_lengths(device: torch.device, hardware: Hardware, num_sequences: int) -> None:
    """Captured on sequences of one token, as an engine would; then long ones, and rows of padding."""
    from kernels.gpu.decode_attention import decode_attention

    longest = 9000 if num_sequences <= 8 else 600
    lens = [(1, longest - 7 * s % 500) for s in range(num_sequences)]
    work = batch(lens, device)
    form, metadata = AttentionForm(SCALE), work.metadata
    real_lens, seq_lens = metadata.seq_lens, torch.ones_like(metadata.seq_lens)
    query = work.query.clone()

    def attend() -> torch.Tensor:
        return decode_attention(query, work.key_cache, work.value_cache, metadata.block_table, seq_lens, form, hardware)

    graph, found = captured(attend)
    for divisor in (1, 3, 50):
        seq_lens.copy_((real_lens // divisor).clamp(min=1))
        query.copy_(torch.randn_like(query))
        now = dataclasses.replace(work, query=query, metadata=dataclasses.replace(metadata, seq_lens=seq_lens))
        found.fill_(float("nan"))
        graph.replay()
        assert_each_near(found.view(num_sequences, -1), now.expected(form), metadata.query_start_loc)
        assert torch.equal(found, attend()), "a replay computes what a call does, to the bit"
    half = num_sequences // 2
    before = found.view(num_sequences, -1)[:half].clone()
    seq_lens[half:] = 0
    found.fill_(float("nan"))
    graph.replay()
    assert torch.equal(found.view(num_sequences, -1)[:half], before)
    assert not found.view(num_sequences, -1)[half:].any(), "a row of no keys is padding, and becomes 0"


@pytest.mark.parametrize("name", ["plain", "all"])
def test_prefill_at_the_end_of_65536_tokens(device: torch.device, hardware: Hardware, name: str) -> None:
    from kernels.gpu.prefill_attention import prefill_attention

    needs_memory(24)
    work = batch([(130, 65536), (1, 3000), (257, 257), (5, 40000)], device)
    form, metadata = forms(32, device)[name], work.metadata
    found = prefill_attention(
        work.query, work.key_cache, work.value_cache, metadata.query_start_loc, metadata.seq_lens,
        metadata.block_table, form, hardware,
    )  # fmt: skip
    assert_each_near(found.view(len(work.query), -1), work.expected(form), metadata.query_start_loc)


@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_prefill_of_whole_prompts(device: torch.device, hardware: Hardware, head_dim: int) -> None:
    from kernels.gpu.prefill_attention import prefill_attention

    work = batch([(2048, 2048), (1000, 1000), (1, 1), (333, 1357)], device, heads=(16, 4, head_dim))
    form, metadata = AttentionForm(head_dim**-0.5), work.metadata
    found = prefill_attention(
        work.query, work.key_cache, work.value_cache, metadata.query_start_loc, metadata.seq_lens,
        metadata.block_table, form, hardware,
    )  # fmt: skip
    assert_each_near(found.view(len(work.query), -1), work.expected(form), metadata.query_start_loc)


@pytest.mark.parametrize("cache_dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_prefill_from_blocks_past_int32(device: torch.device, hardware: Hardware, cache_dtype: torch.dtype) -> None:
    from kernels.gpu.prefill_attention import prefill_attention

    needs_memory(12)
    work = batch([(300, 1000), (1, 3333)], device, num_blocks=PAST_INT32, cache_dtype=cache_dtype)
    form, metadata = AttentionForm(SCALE), work.metadata
    assert int(metadata.block_table[1].min()) * 8 * 16 * 128 >= NUM_INT32
    found = prefill_attention(
        work.query, work.key_cache, work.value_cache, metadata.query_start_loc, metadata.seq_lens,
        metadata.block_table, form, hardware,
    )  # fmt: skip
    assert_each_near(found.view(len(work.query), -1), work.expected(form), metadata.query_start_loc)
