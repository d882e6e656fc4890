"""Grammar masks, biases and penalties in Triton equal their definition."""

import dataclasses
import math

import pytest
import torch
import triton
import triton.language as tl

from kernels import reference
from kernels.gpu.hardware import Hardware
from kernels.gpu.sampling import count_tokens, logprobs, sample
from kernels.gpu.sampling.configuration import SAMPLER
from kernels.gpu.sampling.edits import edit_chunk
from kernels.gpu.sampling.sampler import draw, fields
from kernels.interface import LogitEdits
from tests.kernels.gpu.conftest import HAS_GPU
from tests.kernels.gpu.sampling_data import SMALL, assert_agrees, drawn, on, shaped
from tests.kernels.sampling_rows import Row, batch

BAN = -math.inf


@triton.jit
def _edit(logits_ptr, edits, edited_ptr, found_ptr, flags_ptr, vocab, ALWAYS: tl.constexpr, N: tl.constexpr):
    """`edit_chunk` by itself, a chunk of N tokens as [2, N / 2]."""
    row = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * N
    tokens = first + tl.arange(0, 2)[:, None] * (N // 2) + tl.arange(0, N // 2)[None, :]
    inside = tokens < vocab
    row_ptr = logits_ptr + row * vocab
    x = tl.load(row_ptr + tokens, mask=inside, other=float("-inf")).to(tl.float32)
    x, has_edits = edit_chunk(
        x, tokens, inside, row, first, N, row_ptr, edited_ptr + row * vocab, vocab, edits, ALWAYS, 16
    )
    tl.store(found_ptr + row * vocab + tokens, x, mask=inside)
    tl.store(flags_ptr + row, has_edits.to(tl.int32))


def every_edit(vocab: int) -> list[Row]:
    """One row per edit, rows without any between them, then some together."""
    held = {i % vocab: i % 3 for i in range(0, 40, 2)}
    some = frozenset(range(0, vocab, 3)) | frozenset(range(31, vocab, 32))
    bias = {i * 7 % vocab: (-1) ** i * i / 2 for i in range(40)}
    bans = dict.fromkeys(range(min(30, vocab - 1)), BAN)
    return [
        Row(),
        Row(allowed=some),
        Row(temperature=0.0),
        Row(bias=bias),
        Row(bias=bans),
        Row(top_k=5),
        Row(held=held, repetition=1.7),
        Row(held=held, repetition=0.4),
        Row(held=held, frequency=0.9),
        Row(held=held, presence=-1.1),
        Row(held=held, repetition=1.2, frequency=-0.3, presence=0.4),
        Row(allowed=some, bias=bias, held=held, repetition=1.3),
        Row(bias={**bans, vocab - 1: 3.0}, held=held, presence=2.0),
        Row(allowed=frozenset({vocab - 1})),
    ]


@pytest.mark.parametrize("always", [False, True])
@pytest.mark.parametrize("vocab", [1, 33, 301])
def test_every_edit_is_the_definition(device: torch.device, vocab: int, always: bool) -> None:
    rows = every_edit(vocab)
    sampling = batch(rows, vocab)
    logits = shaped("random", len(rows), vocab, 1)
    edits = on(sampling, device).edits
    nan = torch.full((2, len(rows), vocab), math.nan, device=device)
    edited, found = nan[0], nan[1]
    flags = torch.full((len(rows),), -1, dtype=torch.int32, device=device)
    _edit[(len(rows), -(-vocab // 64))](
        logits.to(device), fields(edits), edited, found, flags, vocab, ALWAYS=always, N=64
    )
    expected = reference.edit_logits(logits, sampling)
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-6, atol=1e-6)
    changed = [row.allowed is not None or bool(row.bias) or bool(row.held) for row in rows]
    assert flags.tolist() == [int(flag) for flag in changed]
    for i, row in enumerate(rows):
        if changed[i] and (always or row.bias):
            assert torch.equal(edited[i], found[i])
        else:
            assert edited[i].isnan().all(), "nothing reads it, so nothing should write it"


FILTERS = [
    {},
    {"temperature": 0.0},
    {"top_k": 3},
    {"top_p": 0.8, "temperature": 1.4},
    {"min_p": 0.05, "top_k": 20, "top_p": 0.9},
]


@pytest.mark.parametrize("which", range(len(FILTERS)))
@pytest.mark.parametrize("is_small", [False, True])
def test_tokens_after_every_edit(device: torch.device, which: int, is_small: bool) -> None:
    vocab = 301 if is_small else 1025
    rows = [dataclasses.replace(row, seed=i, **FILTERS[which]) for i, row in enumerate(every_edit(vocab))]
    logits = shaped("random", len(rows), vocab, 2).bfloat16()
    tokens, _ = drawn(logits, rows, device, SMALL if is_small else SAMPLER)
    assert_agrees(tokens, logits, batch(rows, vocab))


def test_many_chunks(device: torch.device) -> None:
    vocab = 9001
    bias = dict.fromkeys(range(0, vocab, 50), 9.0)
    rows = [
        Row(temperature=0.0, bias={4095: 30.0, 4096: 30.0}),
        Row(bias=bias, allowed=frozenset(range(0, vocab, 25)), held={8999: 1, 50: 2}, frequency=40.0, top_p=0.9),
        Row(held=dict.fromkeys(range(0, vocab, 2), 1), presence=8.0, top_k=12),
    ]
    logits = shaped("random", 3, vocab, 3)
    tokens, _ = drawn(logits, rows, device)
    assert_agrees(tokens, logits, batch(rows, vocab))


def test_counts_of_slots_that_last(device: torch.device) -> None:
    """Slots in any order, others' counts beside them, spare capacity of the biases filled with nonsense."""
    vocab = 301
    held = {token: token % 4 for token in range(0, vocab, 3)}
    rows = [
        Row(held=held, repetition=1.5, frequency=0.3, presence=0.2, temperature=0.0),
        Row(seed=3),
        Row(held={7: 1, 8: 0}, repetition=3.0, bias={4: 2.0}, seed=4),
        Row(held=held, frequency=2.0, top_k=4, allowed=frozenset(range(100)), seed=5),
    ]
    logits = shaped("random", 4, vocab, 5)
    sampling = batch(rows, vocab)
    counts = torch.full((6, vocab), 999, dtype=torch.int32)
    slots = torch.tensor([4, -1, 0, 2], dtype=torch.int32)
    for row, slot in zip(rows, slots.tolist(), strict=True):
        if slot >= 0:
            counts[slot] = torch.tensor([2 * row.held[t] + 1 if t in row.held else 0 for t in range(vocab)])
    # Tokens that only the output holds are penalised as those of the prompt are.
    counts[2] -= (counts[2] > 1).int()
    assert sampling.edits is not None
    edits = on(dataclasses.replace(sampling.edits, counts=counts, count_slot=slots), device)
    spare = torch.full((50,), 2**30, dtype=torch.int32, device=device)
    edits = dataclasses.replace(
        edits,
        bias_ids=torch.cat((edits.bias_ids, spare)),
        bias_values=torch.cat((edits.bias_values, spare.float() * math.nan)),
    )
    for configuration in (SAMPLER, SMALL):
        tokens, _ = draw(logits.to(device), dataclasses.replace(on(sampling, device), edits=edits), configuration)
        assert_agrees(tokens.cpu(), logits, sampling)


@pytest.mark.parametrize("num_rows", [1, 3, 130])
def test_tokens_are_counted(device: torch.device, num_rows: int) -> None:
    generator = torch.Generator().manual_seed(num_rows)
    slots = torch.randperm(num_rows + 5, generator=generator)[:num_rows].to(torch.int32)
    slots[num_rows // 2] = -1
    tokens = torch.randint(0, 50, (num_rows,), generator=generator)
    counts = torch.randint(0, 9, (num_rows + 5, 50), generator=generator, dtype=torch.int32)
    expected = counts.clone()
    for slot, token in zip(slots.tolist(), tokens.tolist(), strict=True):
        if slot >= 0:
            expected[slot, token] += 2
    found = counts.to(device)
    count_tokens(found, slots.to(device), tokens.to(device))
    assert torch.equal(found.cpu(), expected)
    count_tokens(found, slots[:0].to(device), tokens[:0].to(device))
    assert torch.equal(found.cpu(), expected)


@pytest.mark.skipif(not HAS_GPU, reason="the CPU never waits for a device")
def test_nothing_waits_for_the_device(device: torch.device, hardware: Hardware) -> None:
    vocab = 32_000
    rows = [dataclasses.replace(row, top_k=5, top_p=0.9) for row in every_edit(vocab)]
    logits = shaped("random", len(rows), vocab, 6)
    sampling = batch(rows, vocab)
    there, on_device = logits.to(device), on(sampling, device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        tokens = sample(there, on_device)
        logprobs(there, tokens, 5)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_agrees(tokens.cpu(), logits, sampling)


def test_all_fields_reach_the_kernel() -> None:
    """The kernel counts the fields; this is their order."""
    names = [field.name for field in dataclasses.fields(LogitEdits)]
    marks = {name: torch.tensor(i) for i, name in enumerate(names)}
    assert [int(tensor) for tensor in fields(LogitEdits(**marks)) or ()] == list(range(len(names)))
