"""Log-probabilities in Triton equal their definition, ties, -inf and the way through the whole row included."""

import math

import pytest
import torch

from kernels import reference
from kernels.gpu.hardware import Hardware
from kernels.gpu.sampling import logprobs
from kernels.gpu.sampling.configuration import LOGPROBS
from kernels.gpu.sampling.logprobs import find
from tests.kernels.gpu.sampling_data import SMALL, shaped

KINDS = ["random", "peaked", "flat", "tied", "equal"]


def assert_equal(found, expected) -> None:
    assert torch.equal(found.ranks.cpu(), expected.ranks)
    assert torch.equal(found.top_ids.cpu(), expected.top_ids)
    torch.testing.assert_close(found.chosen.cpu(), expected.chosen, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.top.cpu(), expected.top, rtol=1e-5, atol=1e-5)


def chosen_tokens(num_rows: int, vocab: int) -> torch.Tensor:
    return torch.randint(0, vocab, (num_rows,), generator=torch.Generator().manual_seed(vocab))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("vocab", "num_top"), [(1, 3), (50, 20), (1025, 0), (1025, 5)])
def test_they_are_the_definition(device: torch.device, kind: str, vocab: int, num_top: int) -> None:
    logits, tokens = shaped(kind, 3, vocab, 1), chosen_tokens(3, vocab)
    found, _ = find(logits.to(device), tokens.to(device), num_top, LOGPROBS)
    assert found.top_ids.shape == (3, min(num_top, vocab))
    assert_equal(found, reference.logprobs(logits, tokens, num_top))


@pytest.mark.parametrize(("kind", "is_whole"), [("random", False), ("peaked", False), ("tied", None), ("equal", True)])
def test_rows_that_do_not_fit_the_buffer(device: torch.device, kind: str, is_whole: bool | None) -> None:
    logits, tokens = shaped(kind, 3, 701, 2), chosen_tokens(3, 701)
    found, ways = find(logits.to(device), tokens.to(device), 4, SMALL)
    assert_equal(found, reference.logprobs(logits, tokens, 4))
    assert is_whole is None or ways.tolist() == [int(is_whole)] * 3


def test_many_chunks_and_the_sizes_in_use(device: torch.device) -> None:
    vocab = 40_003
    logits = torch.cat((shaped("random", 2, vocab, 3), shaped("tied", 1, vocab, 3)))
    tokens = torch.tensor([vocab - 1, 0, 20_000])
    found, ways = find(logits.to(device), tokens.to(device), 20, LOGPROBS)
    assert_equal(found, reference.logprobs(logits, tokens, 20))
    assert ways.tolist()[:2] == [0, 0]


def test_banned_tokens_are_the_last_of_the_best(device: torch.device) -> None:
    logits = torch.full((2, 301), -math.inf)
    logits[:, [200, 7]] = torch.tensor([1.0, 2.0])
    tokens = torch.tensor([200, 0])
    for configuration in (SMALL, LOGPROBS):
        found, ways = find(logits.to(device), tokens.to(device), 6, configuration)
        assert_equal(found, reference.logprobs(logits, tokens, 6))
        assert found.top_ids[0].tolist() == [7, 200, 0, 1, 2, 3]
        assert ways.tolist() == [1, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_types_and_strided_rows(device: torch.device, dtype: torch.dtype) -> None:
    wide = torch.full((3, 1060), math.nan, dtype=dtype)
    wide[:, 16:1041] = shaped("random", 3, 1025, 5)
    logits = wide.to(device)[:, 16:1041]
    tokens = chosen_tokens(3, 1025)
    found, _ = find(logits, tokens.to(device), 20, LOGPROBS)
    assert_equal(found, reference.logprobs(wide[:, 16:1041], tokens, 20))


def test_a_row_alone_has_the_same_bits(device: torch.device, hardware: Hardware) -> None:
    logits, tokens = shaped("random", 3, 1025, 6).to(device), chosen_tokens(3, 1025).to(device)
    together = logprobs(logits, tokens, 5)
    alone = logprobs(logits[2:], tokens[2:], 5)
    for name in ("chosen", "ranks", "top_ids", "top"):
        assert torch.equal(getattr(alone, name)[0], getattr(together, name)[2]), name
    fewer = logprobs(logits[2:], tokens[2:], 2)
    assert torch.equal(fewer.top_ids[0], together.top_ids[2, :2])


def test_limits(device: torch.device, hardware: Hardware) -> None:
    logits, tokens = torch.zeros(2, 30, device=device), torch.zeros(2, dtype=torch.int64, device=device)
    with pytest.raises(ValueError, match="21"):
        logprobs(logits, tokens, 21)
    assert logprobs(logits[:0], tokens[:0], 5).top_ids.shape == (0, 5)
