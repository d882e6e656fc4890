"""Sampling in Triton draws the reference's tokens, by whichever way they are found, and rows do not touch."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from kernels import reference
from kernels.gpu.hardware import Hardware
from kernels.gpu.sampling import sample
from kernels.gpu.sampling.configuration import SAMPLER
from kernels.gpu.sampling.sampler import draw
from kernels.interface import SamplingTensors
from tests.kernels.gpu.conftest import HAS_GPU
from tests.kernels.gpu.sampling_data import BUFFER, GREEDY, PLAIN, SMALL, WHOLE_ROW, assert_agrees, drawn, on, shaped
from tests.kernels.sampling_rows import Row, batch, probabilities

FILTERS = [
    Row(temperature=0.0),
    Row(),
    Row(temperature=0.3, seed=-5),
    Row(top_k=1),
    Row(top_k=40),
    Row(top_k=700, temperature=2.0),
    Row(top_p=0.9),
    Row(top_p=0.2, temperature=1.7),
    Row(top_p=1e-6),
    Row(min_p=0.1),
    Row(min_p=1.0),
    Row(min_p=1e-4, temperature=1.5),
    Row(top_k=30, top_p=0.8),
    Row(top_k=500, top_p=0.95, min_p=1e-3, temperature=0.8),
    Row(top_p=0.7, min_p=1e-3),
    Row(top_k=10**9, top_p=0.99),
]
FILTERS = [dataclasses.replace(row, seed=row.seed + 17 * i, position=2**33 + i) for i, row in enumerate(FILTERS)]
# Where the hardware's result is infinite or not a number, numpy, which the interpreter works with, warns.
quietly = pytest.mark.filterwarnings("ignore::RuntimeWarning")
KINDS = ["random", "peaked", "flat", "tied", "banned", "equal"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("vocab", [1, 50, 1025])
def test_every_filter_alone_and_together(device: torch.device, kind: str, vocab: int) -> None:
    logits = shaped(kind, len(FILTERS), vocab, 1)
    logits[:, vocab // 2].clamp_(min=-1.0)
    tokens, ways = drawn(logits, FILTERS, device)
    assert_agrees(tokens, logits, batch(FILTERS, vocab))
    assert set(ways) <= {GREEDY, PLAIN, BUFFER}, "so few tokens always fit the buffer"


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_do_not_fit_the_buffer(device: torch.device, kind: str) -> None:
    """Several tiles, and a buffer of 32 tokens: the whole row is searched where that is not enough, and only there."""
    vocab = 301
    logits = shaped(kind, len(FILTERS), vocab, 2)
    logits[:, 7].clamp_(min=-1.0)
    tokens, ways = drawn(logits, FILTERS, device, SMALL)
    assert_agrees(tokens, logits, batch(FILTERS, vocab))
    if kind == "random":
        # top_k = 700 is no filter here; top_k = 40 and min_p = 1e-4 leave more than 32 tokens, top_k = 1 one.
        assert [ways[i] for i in (0, 1, 3, 4, 5, 9, 11)] == [GREEDY, PLAIN, BUFFER, WHOLE_ROW, PLAIN, BUFFER, WHOLE_ROW]
    if kind == "equal":
        assert {way for way in ways if way != GREEDY} == {PLAIN, WHOLE_ROW}


def test_many_chunks_and_the_sizes_in_use(device: torch.device) -> None:
    vocab = 40_003
    rows = [FILTERS[i] for i in (0, 1, 4, 6, 12, 13, 6, 7)]
    logits = torch.cat((shaped("random", 6, vocab, 3), shaped("peaked", 1, vocab, 4), shaped("flat", 1, vocab, 5)))
    tokens, ways = drawn(logits, rows, device)
    assert_agrees(tokens, logits, batch(rows, vocab))
    assert ways == [GREEDY, PLAIN, BUFFER, BUFFER, BUFFER, BUFFER, BUFFER, WHOLE_ROW]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_types_and_strided_rows(device: torch.device, dtype: torch.dtype) -> None:
    vocab, rows = 5003, FILTERS[:8]
    wide = torch.full((len(rows), vocab + 45), math.nan, dtype=dtype)
    wide[:, 16 : 16 + vocab] = shaped("random", len(rows), vocab, 5)
    wide = wide.to(device)
    logits = wide[:, 16 : 16 + vocab]
    before = wide.clone()
    tokens, _ = drawn(logits, rows, device)
    assert_agrees(tokens, logits.cpu(), batch(rows, vocab))
    assert torch.equal(wide.nan_to_num(7.0), before.nan_to_num(7.0))


def test_ties_go_to_the_lowest_id_and_stay_at_a_threshold(device: torch.device) -> None:
    logits = torch.zeros(2, 700)
    logits[0, [650, 130, 131]] = 2.0
    logits[1, [5, 77, 300, 301]] = 40.0
    greedy = [Row(temperature=0.0), Row(temperature=0.0)]
    assert drawn(logits, greedy, device)[0].tolist() == [130, 5]
    assert drawn(logits, greedy, device, SMALL)[0].tolist() == [130, 5]
    many = logits[1:].expand(24, -1)
    for row in (Row(top_k=2), Row(top_p=0.3), Row(min_p=1.0)):
        tokens, _ = drawn(many, [dataclasses.replace(row, seed=seed) for seed in range(24)], device)
        assert set(tokens.tolist()) == {5, 77, 300, 301}


@quietly
def test_one_token_kept_is_the_greedy_one(device: torch.device) -> None:
    logits = shaped("random", 4, 1025, 6)
    expected = logits.argmax(-1).tolist()
    for row in (Row(top_k=1), Row(top_p=1e-9), Row(min_p=1.0), Row(temperature=1e-30), Row(temperature=1e-42)):
        assert drawn(logits, [row] * 4, device)[0].tolist() == expected, row
        assert drawn(logits, [row] * 4, device, SMALL)[0].tolist() == expected, row


@quietly
def test_extreme_logits_and_temperatures(device: torch.device) -> None:
    logits = torch.tensor([[1e30, -1e30, 0.0], [-1e4, -2e4, -1e4 + 1]])
    assert drawn(logits, [Row(temperature=1e-30, top_p=0.5)] * 2, device)[0].tolist() == [0, 2]
    assert drawn(logits, [Row(temperature=1e-30)] * 2, device)[0].tolist() == [0, 2]
    assert drawn(logits, [Row(temperature=100.0)] * 2, device)[0][0] == 0
    far = torch.full((2, 600), -math.inf)
    far[:, 599] = -3e38
    assert drawn(far, [Row(), Row(top_k=3, top_p=0.9)], device)[0].tolist() == [599, 599]


@quietly
def test_rows_that_pad_a_graph_stay_inside_the_vocabulary(device: torch.device) -> None:
    rows = [Row(temperature=0.0), Row(), Row(top_k=5), Row(top_p=0.5), Row(min_p=0.1), Row(top_k=100, top_p=0.9)]
    for value in (math.nan, math.inf, -math.inf):
        tokens, _ = drawn(torch.full((len(rows), 301), value), rows, device, SMALL)
        assert ((tokens >= 0) & (tokens < 301)).all()


def test_a_row_depends_on_nothing_but_itself(device: torch.device) -> None:
    vocab = 301
    logits = shaped("random", len(FILTERS), vocab, 8).to(device)
    together, ways = drawn(logits, FILTERS, device, SMALL)
    order = torch.randperm(len(FILTERS), generator=torch.Generator().manual_seed(1)).tolist()
    shuffled, _ = drawn(logits[order], [FILTERS[i] for i in order], device, SMALL)
    assert shuffled.tolist() == together[order].tolist()
    for i in (1, 4, 6, 13):
        assert drawn(logits[i : i + 1], [FILTERS[i]], device, SMALL)[0].item() == together[i]
    assert {PLAIN, BUFFER, WHOLE_ROW} <= set(ways)


@pytest.mark.parametrize(
    "row",
    [
        Row(temperature=1.3),
        Row(top_k=9),
        Row(top_p=0.8),
        Row(min_p=0.15, temperature=2.0),
        Row(min_p=0.02, top_k=20, top_p=0.9, temperature=1.4),
    ],
)
def test_draws_follow_the_truncated_softmax(device: torch.device, row: Row) -> None:
    """Chi-square at fixed seeds. For up to 49 degrees of freedom, 100 is beyond the 1 - 1e-5 quantile (98.6 at 49).

    In the interpreter few draws are affordable: six per token, for noise that is wrong by half. That each token equals
    the reference's, whose own draws are many, says the rest.
    """
    vocab, draws = 50, 40_000 if HAS_GPU else 300
    logits = torch.linspace(-2.0, 2.0, vocab)[torch.randperm(vocab, generator=torch.Generator().manual_seed(3))]
    sampling = batch([row] * draws, vocab)
    sampling = dataclasses.replace(sampling, seeds=torch.arange(draws) % 1999, positions=torch.arange(draws))
    configuration = dataclasses.replace(SAMPLER, span=16, spans=4, capacity=64, tile=64, wide_tile=64)
    tokens, _ = draw(logits.to(device).expand(draws, -1), on(sampling, device), configuration)
    counts = torch.bincount(tokens.cpu(), minlength=vocab).double()
    exact = torch.tensor(probabilities(logits.tolist(), row), dtype=torch.float64)
    kept = exact > 0
    assert kept.sum() > 5
    assert counts[~kept].sum() == 0, "a token that the filters rule out"
    expected = exact[kept] * draws
    assert float(((counts[kept] - expected) ** 2 / expected).sum()) < 100


def test_no_rows(device: torch.device, hardware: Hardware) -> None:
    assert sample(torch.empty(0, 10, device=device), on(batch([], 10), device)).shape == (0,)


@pytest.mark.skipif(not HAS_GPU, reason="graphs need a GPU")
def test_one_graph_serves_every_mixture(device: torch.device, hardware: Hardware) -> None:
    vocab, num_rows = 151_936, len(FILTERS)
    logits = torch.empty(num_rows, vocab, dtype=torch.bfloat16, device=device)
    fields = [field.name for field in dataclasses.fields(SamplingTensors) if field.type == Tensor]
    assert len(fields) == 6
    orders = [list(range(num_rows)), list(reversed(range(num_rows))), [1] * num_rows, [0] * num_rows]
    filled = [batch([FILTERS[i] for i in order], vocab) for order in orders]
    static = on(filled[2], device)
    sample(logits.normal_(), static)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        tokens = sample(logits, static)
    for seed, sampling in enumerate(filled):
        values = shaped("random", num_rows, vocab, seed).bfloat16()
        logits.copy_(values)
        for name in fields:
            getattr(static, name).copy_(getattr(sampling, name))
        graph.replay()
        assert_agrees(tokens.cpu(), values, sampling)


def test_agreement_notices_a_wrong_token() -> None:
    logits = shaped("random", 1, 50, 9)
    sampling = batch([Row()], 50)
    token = reference.sample(logits, sampling)
    with pytest.raises(AssertionError, match="whose score"):
        assert_agrees((token + 1) % 50, logits, sampling)
