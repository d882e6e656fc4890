"""Steps expanded on the device: right at real sizes, without waiting, and replayed with other tables."""

import dataclasses

import pytest
import torch
from torch import Tensor

from kernels import LogitEdits, SamplingTensors, StepInputs, reference
from kernels.gpu.hardware import Hardware
from tests.gpu.support import captured, without_waiting
from tests.kernels.steps import Step, assert_same, on, random_step, untouched

BLOCK_SIZE = 32


def mixed_lens(num_decodes: int, seed: int) -> list[tuple[int, int]]:
    """Decodes of any length, some prompts and chunks, some padding."""
    lens = torch.randint(1, 8192, (num_decodes,), generator=torch.Generator().manual_seed(seed)).tolist()
    return [*((1, length) for length in lens), (8000, 8000), (513, 2048), (1, 0), (77, 77), (1, 0)]


def expected_of(step: Step) -> StepInputs:
    out = untouched(step)
    reference.expand_step(step.tables, step.state, step.block_size, step.max_blocks, out)
    return out


@pytest.mark.parametrize("num_decodes", [1, 31, 256])
def test_real_sizes(device: torch.device, hardware: Hardware, num_decodes: int) -> None:
    from kernels.gpu.step import expand_step

    step = random_step(mixed_lens(num_decodes, 1), seed=num_decodes, block_size=BLOCK_SIZE, table_width=4096)
    there, out = on(step, device), on(untouched(step), device)
    expand_step(there.tables, there.state, BLOCK_SIZE, step.max_blocks, out)
    assert_same(out, expected_of(step))
    with without_waiting():
        expand_step(there.tables, there.state, BLOCK_SIZE, step.max_blocks, out)


def test_replayed_with_other_tables(device: torch.device, hardware: Hardware) -> None:
    """One graph of 40 sequences of one token; each replay finds other rows, lengths, places and parameters."""
    from kernels.gpu.step import expand_step

    def decodes(seed: int) -> Step:
        lens = torch.randint(0, 4096, (40,), generator=torch.Generator().manual_seed(seed)).tolist()
        lens[-1] = 4096
        return random_step([(1, n) for n in lens], seed=seed, block_size=BLOCK_SIZE, table_width=256, num_rows=256)

    static = on(decodes(0), device)
    out = on(untouched(decodes(0)), device)
    graph, _ = captured(lambda: expand_step(static.tables, static.state, BLOCK_SIZE, 128, out))
    for seed in (1, 2, 3):
        step = decodes(seed)
        for there, here in ((static.tables, step.tables), (static.state, step.state)):
            for field in dataclasses.fields(here):
                getattr(there, field.name).copy_(getattr(here, field.name))
        for field in dataclasses.fields(out):
            getattr(out, field.name).fill_(-77)
        graph.replay()
        assert_same(out, expected_of(step))


def test_a_decode_step_feeds_itself(device: torch.device, hardware: Hardware) -> None:
    """Expand, sample with counts, store the tokens and count them, as one graph; its next replay reads what it left."""
    from kernels.gpu.sampling import count_tokens, sample
    from kernels.gpu.step import expand_step, write_words

    num_seqs, vocab = 24, 4001
    step = random_step([(1, 9)] * (num_seqs - 2) + [(1, 0)] * 2, seed=5, num_rows=64)
    step.tables.sample_places.copy_(torch.arange(num_seqs))
    step.tables.token_ids.fill_(-1)
    counts = torch.zeros(len(step.state.counts), vocab, dtype=torch.int32)
    neutral = torch.tensor([0.0, 1.0, 0.0]).view(torch.int32)
    step.state.sampling[:, :3] = neutral
    step.state.sampling[:, 3] = 0
    step.state.sampling[:, 6:9] = torch.tensor([1.0, 0.0, 30.0]).view(torch.int32)
    step.state.sampling[:, 9] = 1
    step.state.sampling[-1, 9] = 0
    step = dataclasses.replace(step, state=dataclasses.replace(step.state, counts=counts))
    there, out = on(step, device), on(untouched(step, spare=0), device)
    logits = torch.randn(num_seqs, vocab, device=device)
    none = torch.zeros(num_seqs + 1, dtype=torch.int32, device=device)
    edits = LogitEdits(
        there.state.masks, out.mask_row, none, none, none.float(), there.state.counts, out.count_slot, out.repetition,
        out.frequency, out.presence,
    )  # fmt: skip
    sampling = SamplingTensors(
        out.temperature, out.top_k, out.top_p, out.min_p, out.seeds, out.sample_positions, all_greedy=False, edits=edits
    )

    def run() -> Tensor:
        expand_step(there.tables, there.state, step.block_size, step.max_blocks, out)
        tokens = sample(logits, sampling)
        write_words(there.state.last_tokens, out.sample_rows, tokens)
        count_tokens(there.state.counts, out.count_slot, tokens)
        return tokens

    graph, tokens = captured(run)
    there.state.counts.zero_()
    # A presence penalty larger than any logit: each step takes the best token that was not taken before.
    best = logits.cpu().sort(-1, descending=True).indices
    rows = step.tables.rows[: num_seqs - 2].long()
    for i in range(5):
        with without_waiting():
            graph.replay()
        assert torch.equal(tokens[: num_seqs - 2].cpu(), best[: num_seqs - 2, i])
        assert torch.equal(there.state.last_tokens.cpu()[rows].long(), best[: num_seqs - 2, i])
        if i:
            assert torch.equal(out.input_ids[: num_seqs - 2].cpu(), best[: num_seqs - 2, i - 1])
    assert torch.equal(there.state.counts.cpu().sum(-1)[rows], torch.full((num_seqs - 2,), 10))
    assert int(there.state.counts[-1].sum()) == 0, "padding counts nothing"


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_words(device: torch.device, hardware: Hardware, dtype: torch.dtype) -> None:
    from kernels.gpu.step import write_words

    words = torch.arange(257 * 4096, dtype=torch.int32)
    places = torch.randperm(len(words))[:9001].to(torch.int32)
    values = torch.randint(-(2**31), 2**31 - 1, (9001,)).to(dtype)
    there = words.to(device)
    staged = (places.to(device), values.to(device))
    with without_waiting():
        write_words(there, *staged)
    reference.write_words(words, places, values)
    assert torch.equal(there.cpu(), words)
