"""Sampling: its random numbers, its distribution, its support, and that a row depends on nothing but itself."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import SamplingTensors, for_device
from kernels.cpu import load_native
from kernels.reference import ReferenceKernels, gumbel_noise, row_keys
from tests.kernels.oracle import kept_tokens

CPU_KERNELS = for_device(torch.device("cpu"))
both = pytest.mark.parametrize("kernels", [CPU_KERNELS, ReferenceKernels()], ids=["cpu", "reference"])


def tensors(rows, *, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, seed=None, position=5):
    """Scalars stand for all rows; without a seed row r has seed r."""

    def column(value, dtype):
        values = value if isinstance(value, list) else [value] * rows
        return torch.tensor(values, dtype=dtype)

    result = SamplingTensors(
        temperature=column(temperature, torch.float32),
        top_k=column(top_k, torch.int32),
        top_p=column(top_p, torch.float32),
        min_p=column(min_p, torch.float32),
        seeds=column(list(range(rows)) if seed is None else seed, torch.int64),
        positions=column(position, torch.int64),
        all_greedy=False,
    )
    return dataclasses.replace(result, all_greedy=bool((result.temperature == 0).all()))


def python_noise_word(seed, position, token):
    """The hash of `gumbel_noise`'s docstring in Python integers."""

    def fmix(h):
        h ^= h >> 16
        h = h * 0x85EBCA6B % 2**32
        h ^= h >> 13
        h = h * 0xC2B2AE35 % 2**32
        return h ^ (h >> 16)

    seed, position = seed % 2**64, position % 2**64
    a = fmix((seed % 2**32 + 0x9E3779B9) % 2**32)
    a = fmix(a ^ (seed >> 32))
    k1 = fmix(a ^ (position % 2**32))
    k2 = fmix(((k1 + 0x9E3779B9) % 2**32) ^ (position >> 32))
    return (fmix(token ^ k1) + k2) % 2**32


@pytest.mark.parametrize("seed", [0, 1, -1, 2**62 + 12345, -(2**63)])
def test_noise_is_the_documented_hash(seed):
    seeds, positions = torch.tensor([seed]), torch.tensor([77])
    noise = gumbel_noise(seeds, positions, 1000)[0].double()
    words = torch.tensor([python_noise_word(seed, 77, t) for t in range(1000)], dtype=torch.float64)
    expected = -torch.log(-torch.log1p(-(words + 0.5) * 2.0**-32))
    assert torch.allclose(noise, expected, atol=1e-5, rtol=1e-5)
    k1, k2 = row_keys(seeds, positions)
    compiled = torch.empty(1008)
    native = load_native()
    assert native is not None
    native.gumbel_noise(k1.item(), k2.item(), 1008, compiled.data_ptr())
    assert torch.allclose(compiled[:1000].double(), expected, atol=1e-5, rtol=1e-5)


@both
def test_greedy_takes_the_lowest_id_of_the_largest(kernels):
    logits = torch.tensor([[1.0, 3.0, 3.0, 0.0], [5.0, 5.0, 5.0, 5.0], [-1.0, -3.0, -2.0, -0.5]])
    assert kernels.sample(logits, tensors(3, temperature=0.0)).tolist() == [1, 0, 3]
    assert kernels.sample(logits.bfloat16(), tensors(3, temperature=[0.0, 0.0, 1e-6])).tolist() == [1, 0, 3]


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.7, 0, 1.0), (1.3, 9, 1.0), (1.0, 0, 0.8)]
)
def test_draws_follow_the_softmax(temperature, top_k, top_p):
    """Chi-square of thousands of draws, keyed by seed in half of them and by position in the other, at fixed seeds.

    For up to 29 degrees of freedom, 70 is beyond the 1 - 1e-5 quantile (67.6 at 29); a biased noise scores hundreds.
    """
    vocab, draws = 30, 40_000 if (top_k, top_p) == (0, 1.0) else 8_000
    logits = torch.linspace(-2.0, 2.0, vocab)[torch.randperm(vocab, generator=torch.Generator().manual_seed(3))]
    half = draws // 2
    sampling = tensors(
        draws,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=[*range(half), *([2**40 + 7] * half)],
        position=[*([3] * half), *range(half)],
    )
    tokens = CPU_KERNELS.sample(logits.expand(draws, -1), sampling)
    kept = sorted(kept_tokens(logits.tolist(), temperature, top_k, top_p))
    expected = torch.softmax(logits[kept].double() / temperature, 0) * draws
    counts = torch.bincount(tokens, minlength=vocab)[kept].double()
    assert counts.sum() == draws
    assert float(((counts - expected) ** 2 / expected).sum()) < 70


def test_noise_of_neighbouring_keys_is_independent():
    """The correlation of two rows of 20 000 is normal with deviation 0.007; the limit is five of those."""
    keys = torch.arange(4)
    by_seed = gumbel_noise(keys, torch.zeros_like(keys), 20_000)
    by_position = gumbel_noise(torch.zeros_like(keys), keys + 1, 20_000)
    correlation = torch.corrcoef(torch.cat((by_seed, by_position)))
    assert (correlation - torch.eye(8)).abs().max() < 0.035
    # Nor is the noise of a token that of its neighbour under another key.
    assert torch.corrcoef(torch.stack((by_seed[0, 1:], by_seed[1, :-1])))[0, 1].abs() < 0.035


@both
@given(
    values=st.lists(st.integers(-20, 20), min_size=1, max_size=12),
    temperature=st.sampled_from([0.3, 1.0, 2.0]),
    top_k=st.integers(0, 14),
    top_p=st.floats(0.01, 1.0),
)
@settings(max_examples=60, deadline=None)
def test_support_is_that_of_top_k_then_top_p(kernels, values, temperature, top_k, top_p):
    logits = [value / 4 for value in values]
    top_p = float(torch.tensor(top_p, dtype=torch.float32))
    expected = kept_tokens(logits, temperature, top_k, top_p)
    # At a mass that equals top_p but for rounding either answer is right.
    near = kept_tokens(logits, temperature, top_k, max(top_p - 1e-5, 1e-9)) | kept_tokens(
        logits, temperature, top_k, min(top_p + 1e-5, 1.0)
    )
    rows = 32
    sampling = tensors(rows, temperature=temperature, top_k=top_k, top_p=top_p)
    drawn = set(kernels.sample(torch.tensor(logits).expand(rows, -1), sampling).tolist())
    assert drawn <= (near if near != expected else expected)


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.999), (2000, 0.97), (1500, 1.0), (0, 0.3), (3, 0.5), (5000, 1.0)])
def test_wide_distributions_keep_what_the_definition_keeps(top_k, top_p):
    """More tokens than the candidates of the fast path: token for token what the reference draws."""
    generator = torch.Generator().manual_seed(11)
    logits = torch.randn(12, 4000, generator=generator) * 0.5
    sampling = tensors(12, top_k=top_k, top_p=top_p)
    assert torch.equal(CPU_KERNELS.sample(logits, sampling), ReferenceKernels().sample(logits, sampling))


def test_mixed_rows_equal_the_reference_and_each_row_alone():
    rows, vocab = 24, 300
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(rows, vocab, generator=generator) * 2
    sampling = tensors(
        rows,
        temperature=[0.0, 0.5, 1.0, 1.7] * 6,
        top_k=[0, 0, 5, 40, 0, 1000] * 4,
        top_p=[1.0, 0.9, 1.0, 0.5, 0.05] * 4 + [1.0] * 4,
        position=list(range(100, 100 + rows)),
    )
    kernels = CPU_KERNELS
    together = kernels.sample(logits, sampling)
    assert torch.equal(together, ReferenceKernels().sample(logits, sampling))
    fields = ("temperature", "top_k", "top_p", "min_p", "seeds", "positions")
    order = torch.randperm(rows, generator=generator)
    shuffled = dataclasses.replace(sampling, **{name: getattr(sampling, name)[order] for name in fields})
    assert torch.equal(kernels.sample(logits[order], shuffled), together[order])
    for row in range(rows):
        alone = {name: getattr(sampling, name)[row : row + 1] for name in fields}
        greedy = bool(alone["temperature"] == 0)
        token = kernels.sample(logits[row : row + 1], dataclasses.replace(sampling, **alone, all_greedy=greedy))
        assert token.item() == together[row].item()


@both
def test_extreme_logits_and_temperatures_stay_finite(kernels):
    logits = torch.tensor([[1e30, -1e30, 0.0], [-1e4, -2e4, -1e4 + 1]])
    assert kernels.sample(logits, tensors(2, temperature=1e-30, top_p=0.5)).tolist() == [0, 2]
    assert kernels.sample(logits, tensors(2, temperature=100.0)).tolist()[0] == 0
