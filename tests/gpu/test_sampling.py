"""Sampling and log-probabilities over a vocabulary of 152k, replayed with other parameters."""

import dataclasses

import pytest
import torch

from kernels import SamplingTensors, reference
from kernels.gpu.hardware import Hardware
from tests.gpu.support import NUM_INT32, captured, needs_memory
from tests.kernels.oracle import relative_error

VOCAB = 151936
ROWS = 64
COLUMNS = ("temperature", "top_k", "top_p", "min_p", "seeds", "positions")


def logits_of(num_rows: int, device: torch.device, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return (torch.randn(num_rows, VOCAB, dtype=dtype, device=device) * 3).to(dtype)


def mixed(num_rows: int, device: torch.device, seed: int = 0) -> SamplingTensors:
    """Rows of every kind: greedy, plain, each filter alone, all of them."""
    r = torch.arange(num_rows, device=device)

    def where(kinds: tuple[int, ...], value: float, other: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        chosen = torch.stack([r % 6 == kind for kind in kinds]).any(0)
        return torch.where(chosen, value, other).to(dtype)

    return SamplingTensors(
        temperature=where((0,), 0.0, 0.7),
        top_k=where((2, 5), 50, 0, torch.int32),
        top_p=where((3, 5), 0.9, 1.0),
        min_p=where((4, 5), 0.05, 0.0),
        seeds=r * 7919 + seed,
        positions=r + 1000,
        all_greedy=False,
    )


def assert_sampled(found: torch.Tensor, logits: torch.Tensor, sampling: SamplingTensors) -> None:
    """Greedy rows exactly. Of the others at most one in 32 may differ: logarithms of the noise that differ in the last
    bit decide between two tokens about once in 10^5 rows, sums of probabilities at the edge of top_p more often."""
    expected = reference.sample(logits, sampling)
    assert found.dtype == torch.int64
    greedy = sampling.temperature == 0
    assert torch.equal(found[greedy], expected[greedy])
    assert int((found != expected).sum()) <= len(found) // 32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("num_rows", [1, 3, ROWS])
def test_sample(device: torch.device, hardware: Hardware, num_rows: int, dtype: torch.dtype) -> None:
    from kernels.gpu.sampling import sample

    logits, sampling = logits_of(num_rows, device, dtype), mixed(num_rows, device)
    assert_sampled(sample(logits, sampling), logits, sampling)


def test_flat_and_peaked_rows(device: torch.device, hardware: Hardware) -> None:
    """All logits equal, one far above, all but some -inf: where searches for a threshold go wrong."""
    from kernels.gpu.sampling import sample

    logits = logits_of(24, device, torch.float32)
    logits[:6] = 1.5
    logits[6:12, 77_777] = 200.0
    logits[12:18, 5:] = float("-inf")
    sampling = mixed(24, device)
    assert_sampled(sample(logits, sampling), logits, sampling)


def test_replayed_with_other_logits_and_parameters(device: torch.device, hardware: Hardware) -> None:
    from kernels.gpu.sampling import sample

    logits = logits_of(ROWS, device)
    sampling = mixed(ROWS, device)
    graph, found = captured(lambda: sample(logits, sampling))
    for seed in (1, 2, 3):
        logits.copy_(logits_of(ROWS, device))
        # The kinds move on by a row each time, so that every row is captured as one and replayed as another.
        new = mixed(ROWS + seed, device, seed)
        for name in COLUMNS:
            getattr(sampling, name).copy_(getattr(new, name)[seed:])
        found.fill_(-1)
        graph.replay()
        assert_sampled(found, logits, sampling)
        assert torch.equal(found, sample(logits, sampling)), "a replay computes what a call does"


def test_a_row_does_not_depend_on_its_batch(device: torch.device, hardware: Hardware) -> None:
    from kernels.gpu.sampling import sample

    logits, sampling = logits_of(ROWS, device), mixed(ROWS, device)
    together = sample(logits, sampling)
    for row in range(7, 13):
        columns = {name: getattr(sampling, name)[row : row + 1].clone() for name in COLUMNS}
        alone = dataclasses.replace(sampling, **columns)
        assert int(sample(logits[row : row + 1], alone)) == int(together[row])


@pytest.mark.parametrize("num_top", [0, 1, 20])
def test_logprobs(device: torch.device, hardware: Hardware, num_top: int) -> None:
    from kernels.gpu.sampling import logprobs

    logits = torch.randn(ROWS, VOCAB, device=device) * 3  # float32: hardly any ties
    token_ids = torch.randint(0, VOCAB, (ROWS,), device=device)
    token_ids[0], token_ids[1] = logits[0].argmax(), logits[1].argmin()
    found = logprobs(logits, token_ids, num_top)
    expected = reference.logprobs(logits, token_ids, num_top)
    assert torch.equal(found.ranks, expected.ranks)
    assert torch.equal(found.top_ids, expected.top_ids)
    assert float((found.chosen - expected.chosen).abs().max()) < 2e-5
    if num_top:
        assert float((found.top - expected.top).abs().max()) < 2e-5


def test_ties_go_to_the_lower_id(device: torch.device, hardware: Hardware) -> None:
    from kernels.gpu.sampling import logprobs, sample

    logits = logits_of(6, device).round()  # many of each value
    sampling = mixed(6, device)
    greedy = sample(logits, sampling)[0]
    assert int(greedy) == int((logits[0] == logits[0].max()).nonzero()[0])
    token_ids = torch.randint(0, VOCAB, (6,), device=device)
    found = logprobs(logits, token_ids, 20)
    expected = reference.logprobs(logits, token_ids, 20)
    assert torch.equal(found.top_ids, expected.top_ids)
    assert torch.equal(found.ranks, expected.ranks)


def test_rows_past_int32(device: torch.device, hardware: Hardware) -> None:
    """A prompt's log-probabilities can be more logits than an int32 counts."""
    from kernels.gpu.sampling import logprobs, sample

    needs_memory(16)
    num_rows = NUM_INT32 // VOCAB + 5
    logits = torch.empty(num_rows, VOCAB, dtype=torch.bfloat16, device=device).normal_(0, 3)
    token_ids = torch.randint(0, VOCAB, (num_rows,), device=device)
    found = logprobs(logits, token_ids, 2)
    expected = reference.logprobs(logits[-4:], token_ids[-4:], 2)
    assert torch.equal(found.top_ids[-4:], expected.top_ids)
    assert torch.equal(found.ranks[-4:], expected.ranks)
    assert relative_error(found.chosen[-4:], expected.chosen) < 1e-5
    sampling = mixed(num_rows, device)
    sampling.temperature[-4:] = 0.0
    tokens = sample(logits, sampling)
    assert torch.equal(tokens[-4:], logits[-4:].float().argmax(-1))
