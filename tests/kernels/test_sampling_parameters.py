"""Every sampling parameter: what it does to the logits, the distribution it leaves, and that rows do not mix."""

import dataclasses
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernels import for_device
from kernels.reference import ReferenceKernels, edit_logits
from tests.kernels.sampling_rows import Row, batch, edited, probabilities

CPU, REFERENCE = for_device(torch.device("cpu")), ReferenceKernels()
BAN = -math.inf


def each_alone(vocab_size: int) -> list[Row]:
    """One row per parameter, then some together, for any vocabulary."""
    held = {i % vocab_size: i % 3 for i in range(0, 40, 2)}
    some = frozenset(range(0, vocab_size, 3))
    bias = {i % vocab_size: (-1) ** i * i / 2 for i in range(12)}
    bans = dict.fromkeys(range(min(30, vocab_size - 1)), BAN)
    rows = [
        Row(),
        Row(temperature=0.3),
        Row(top_k=4),
        Row(top_p=0.7),
        Row(min_p=0.2),
        Row(min_p=1.0),
        Row(allowed=some),
        Row(bias=bias),
        Row(bias=bans),
        Row(held=held, repetition=1.7),
        Row(held=held, repetition=0.4),
        Row(held=held, frequency=0.9),
        Row(held=held, presence=-1.1),
        Row(held=held, repetition=1.2, frequency=-0.3, presence=0.4),
        Row(min_p=0.02, top_k=20, top_p=0.9, temperature=1.4),
        Row(allowed=some, bias=bias, held=held, repetition=1.3, min_p=0.01, top_p=0.95),
        Row(bias={**bans, vocab_size - 1: 3.0}, held=held, presence=2.0, top_k=3),
    ]
    greedy = [dataclasses.replace(row, temperature=0.0) for row in rows[:1] + rows[6:14] + rows[15:]]
    return [dataclasses.replace(row, seed=seed - 7) for seed, row in enumerate(rows + greedy)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab_size", [1, 7, 1000])
def test_each_parameter_and_all_in_one_batch(vocab_size: int, dtype: torch.dtype) -> None:
    rows = each_alone(vocab_size) * 4
    rows = [dataclasses.replace(row, position=i) for i, row in enumerate(rows)]
    logits = (torch.randn(len(rows), vocab_size, generator=torch.Generator().manual_seed(1)) * 3).to(dtype)
    before, sampling = logits.clone(), batch(rows, vocab_size)
    found = edit_logits(logits, sampling)
    expected = [edited(logits[i].tolist(), row) for i, row in enumerate(rows)]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=1e-5)
    tokens = CPU.sample(logits, sampling)
    assert torch.equal(tokens, REFERENCE.sample(logits, sampling))
    for i, row in enumerate(rows):
        assert CPU.sample(logits[i : i + 1], batch([row], vocab_size)).item() == tokens[i]
        if row.temperature == 0.0:
            assert tokens[i] == found[i].argmax()
    assert torch.equal(logits, before), "log-probabilities still need them"


def test_a_large_vocabulary() -> None:
    vocab_size = 152_064
    rows = each_alone(vocab_size)[1::2]
    logits = torch.randn(len(rows), vocab_size, generator=torch.Generator().manual_seed(2)) * 2
    sampling = batch(rows, vocab_size)
    tokens = CPU.sample(logits, sampling)
    assert torch.equal(tokens, REFERENCE.sample(logits, sampling))
    assert CPU.sample(logits[-1:], batch(rows[-1:], vocab_size)).item() == tokens[-1]


def test_rows_become_bits_starts_and_counts() -> None:
    """What the helper of these tests makes of rows; the other tests would not notice if it left out an edit."""
    rows = [Row(), Row(allowed=frozenset({0, 31, 32, 69}), held={3: 2, 69: 0}), Row(bias={5: 1.0, 9: BAN}), Row()]
    edits = batch(rows, 70).edits
    assert edits is not None
    assert edits.bitmask.tolist() == [[1 - 2**31, 1, 1 << 5]]
    assert edits.mask_row.tolist() == [-1, 0, -1, -1]
    assert edits.bias_start.tolist() == [0, 0, 0, 2, 2]
    assert edits.bias_ids.tolist() == [5, 9]
    assert edits.bias_values.tolist() == [1.0, BAN]
    assert edits.count_slot.tolist() == [-1, 0, -1, -1]
    assert edits.counts[0].nonzero()[:, 0].tolist() == [3, 69]
    assert edits.counts[0, [3, 69]].tolist() == [5, 1]
    assert batch([Row()], 70).edits is None


def test_slots_in_any_order_and_counts_of_the_output_alone() -> None:
    """The engine's rows are spread over tables of all sequences; entries of `bias_ids` past the last mean nothing."""
    vocab_size = 300
    held = {token: token % 4 for token in range(0, vocab_size, 3)}
    rows = [
        Row(held=held, repetition=1.5, frequency=0.3, presence=0.2, temperature=0.0),
        Row(seed=3),
        Row(held={7: 1, 8: 0}, repetition=3.0, bias={4: 2.0}, seed=4, allowed=frozenset(range(0, 300, 2))),
        Row(held=held, frequency=2.0, top_k=4, seed=5),
    ]
    sampling = batch(rows, vocab_size)
    assert sampling.edits is not None
    counts = torch.full((6, vocab_size), 999, dtype=torch.int32)
    counts[torch.tensor([4, 0, 2])] = sampling.edits.counts
    # Tokens that only the output holds are penalised as those of the prompt are.
    counts[2] -= (counts[2] > 1).int()
    spread = dataclasses.replace(
        sampling.edits,
        bitmask=torch.cat((torch.zeros(3, 10, dtype=torch.int32), sampling.edits.bitmask)),
        mask_row=torch.tensor([-1, -1, 3, -1], dtype=torch.int32),
        counts=counts,
        count_slot=torch.tensor([4, -1, 0, 2], dtype=torch.int32),
        bias_ids=torch.cat((sampling.edits.bias_ids, torch.tensor([2**30], dtype=torch.int32))),
        bias_values=torch.cat((sampling.edits.bias_values, torch.tensor([math.nan]))),
    )
    logits = torch.randn(4, vocab_size, generator=torch.Generator().manual_seed(5)) * 2
    expected = torch.tensor([edited(logits[i].tolist(), row) for i, row in enumerate(rows)])
    there = dataclasses.replace(sampling, edits=spread)
    torch.testing.assert_close(edit_logits(logits, there), expected, rtol=1e-5, atol=1e-5)
    tokens = CPU.sample(logits, there)
    assert torch.equal(tokens, CPU.sample(logits, sampling))
    assert torch.equal(tokens, REFERENCE.sample(logits, there))


HELD = {3: 2, 8: 0, 11: 1, 20: 5}


@pytest.mark.parametrize(
    "row",
    [
        Row(temperature=0.6),
        Row(min_p=0.15),
        Row(min_p=0.05, temperature=2.0),
        Row(min_p=0.02, top_k=12, top_p=0.8),
        Row(held=HELD, repetition=1.8),
        Row(held=HELD, frequency=0.5, presence=-1.0),
        Row(held=HELD, repetition=0.6, frequency=0.4, presence=0.7, temperature=1.5),
        Row(bias={0: 2.5, 7: -1.0, 29: BAN, 14: BAN}),
        Row(allowed=frozenset({1, 5, 8, 9, 20}), bias={1: 1.0, 8: BAN}, held=HELD, presence=1.0),
        Row(bias={0: 2.0, 3: BAN}, held=HELD, repetition=1.3, frequency=0.2, min_p=0.05, top_k=9, top_p=0.9),
    ],
    ids=lambda row: "-".join(f.name for f in dataclasses.fields(row) if getattr(row, f.name) != f.default)[:60],
)
def test_draws_follow_the_exact_distribution(row: Row) -> None:
    """Chi-square at fixed seeds. For up to 29 degrees of freedom, 70 is beyond the 1 - 1e-5 quantile (67.6 at 29)."""
    logits = torch.linspace(-2.0, 2.0, 30)[torch.randperm(30, generator=torch.Generator().manual_seed(3))]
    is_truncated = row.min_p > 0 or row.top_k > 0 or row.top_p < 1.0
    draws = 5_000 if is_truncated else 20_000
    sampling = batch([dataclasses.replace(row, seed=seed) for seed in range(draws)], 30)
    counts = torch.bincount(CPU.sample(logits.expand(draws, -1), sampling), minlength=30).double()
    exact = torch.tensor(probabilities(logits.tolist(), row), dtype=torch.float64)
    assert (exact > 0).sum() > 1
    assert counts[exact == 0].sum() == 0, "a token that the parameters rule out"
    kept = exact > 0
    expected = exact[kept] * draws
    assert float(((counts[kept] - expected) ** 2 / expected).sum()) < 70


@st.composite
def random_rows(draw: st.DrawFn) -> tuple[int, list[Row]]:
    vocab_size = draw(st.integers(1, 12))
    tokens = st.integers(0, vocab_size - 1)

    def row() -> Row:
        allowed = draw(st.none() | st.frozensets(tokens, min_size=1))
        left = sorted(allowed) if allowed is not None else list(range(vocab_size))
        values = st.floats(-4, 4) | st.just(BAN)
        bias = draw(st.dictionaries(tokens, values, max_size=4))
        bias.pop(left[0], None)  # one token stays
        return Row(
            temperature=draw(st.sampled_from([0.0, 0.2, 1.0, 3.0])),
            top_k=draw(st.integers(0, 13)),
            top_p=draw(st.sampled_from([1.0, 0.9, 0.4, 0.01])),
            min_p=draw(st.sampled_from([0.0, 0.0, 0.1, 0.5, 1.0])),
            seed=draw(st.integers(-(2**63), 2**63 - 1)),
            position=draw(st.integers(0, 10**6)),
            allowed=allowed,
            bias=bias,
            held=draw(st.dictionaries(tokens, st.integers(0, 5), max_size=6)),
            repetition=draw(st.sampled_from([1.0, 0.5, 1.5])),
            frequency=draw(st.sampled_from([0.0, -1.0, 0.3])),
            presence=draw(st.sampled_from([0.0, 1.0])),
        )

    return vocab_size, [row() for _ in range(draw(st.integers(1, 6)))]


@given(random_rows(), st.integers(0, 1000), st.sampled_from([torch.float32, torch.bfloat16]))
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_company_changes_nothing(drawn: tuple[int, list[Row]], seed: int, dtype: torch.dtype) -> None:
    vocab_size, rows = drawn
    generator = torch.Generator().manual_seed(seed)
    # Few values, so that ties are common.
    logits = torch.randint(-3, 4, (len(rows), vocab_size), generator=generator).to(dtype)
    together = CPU.sample(logits, batch(rows, vocab_size)).tolist()
    assert together == REFERENCE.sample(logits, batch(rows, vocab_size)).tolist()
    alone = [CPU.sample(logits[i : i + 1], batch([row], vocab_size)).item() for i, row in enumerate(rows)]
    assert together == alone
    for i, row in enumerate(rows):
        assert edited(logits[i].tolist(), row)[together[i]] > BAN
