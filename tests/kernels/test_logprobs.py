"""Log-probabilities: chosen token, rank and the most likely ones, ties by id, and rows by themselves."""

import math

import pytest
import torch

from kernels import for_device
from kernels.reference import ReferenceKernels

CPU, REFERENCE = for_device(torch.device("cpu")), ReferenceKernels()
both = pytest.mark.parametrize("kernels", [CPU, REFERENCE], ids=["cpu", "reference"])


def python_logprobs(logits: list[float], token: int, num_top: int) -> tuple[float, int, list[int], list[float]]:
    """By the definition, in Python floats."""
    peak = max(logits)
    total = peak + math.log(sum(math.exp(x - peak) for x in logits))
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))[:num_top]
    rank = 1 + sum(x > logits[token] for x in logits)
    return logits[token] - total, rank, order, [logits[i] - total for i in order]


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab_size", [1, 7, 1000])
@pytest.mark.parametrize("num_top", [0, 1, 5, 20])
def test_they_are_what_the_definition_says(kernels, dtype, vocab_size, num_top):
    generator = torch.Generator().manual_seed(vocab_size)
    # The second half of the rows has few values: ties inside the best ones, and at their end.
    logits = torch.randn(12, vocab_size, generator=generator) * 3
    logits[6:] = logits[6:].round()
    logits = logits.to(dtype)
    tokens = torch.randint(0, vocab_size, (12,), generator=generator)
    found = kernels.logprobs(logits, tokens, num_top)
    assert found.top_ids.shape == found.top.shape == (12, min(num_top, vocab_size))
    assert (found.chosen.dtype, found.top.dtype) == (torch.float32, torch.float32)
    for row in range(12):
        expected = python_logprobs(logits[row].tolist(), int(tokens[row]), num_top)
        assert found.ranks[row] == expected[1]
        assert found.top_ids[row].tolist() == expected[2]
        assert found.chosen[row].item() == pytest.approx(expected[0], abs=1e-5)
        assert found.top[row].tolist() == pytest.approx(expected[3], abs=1e-5)


@both
def test_all_tokens_equal(kernels):
    found = kernels.logprobs(torch.zeros(2, 5000), torch.tensor([0, 4999]), 20)
    assert found.top_ids.tolist() == [list(range(20))] * 2
    assert found.ranks.tolist() == [1, 1]
    assert found.chosen.tolist() == pytest.approx([-math.log(5000)] * 2)


@pytest.mark.parametrize("vocab_size", [7, 152_064])
def test_a_row_alone_has_the_same_bits(vocab_size):
    logits = torch.randn(5, vocab_size, generator=torch.Generator().manual_seed(4)).bfloat16()
    tokens = torch.arange(5)
    together = CPU.logprobs(logits, tokens, 20)
    for row in range(5):
        alone = CPU.logprobs(logits[row : row + 1], tokens[row : row + 1], 20)
        for name in ("chosen", "ranks", "top_ids", "top"):
            assert torch.equal(getattr(alone, name)[0], getattr(together, name)[row]), name
        fewer = CPU.logprobs(logits[row : row + 1], tokens[row : row + 1], 3)
        assert torch.equal(fewer.top_ids[0], together.top_ids[row, :3])
        assert torch.equal(fewer.top[0], together.top[row, :3])
