"""Rows of logits of many shapes, batches on the device, and when two tokens are the same answer."""

import math

import torch
from torch import Tensor

from kernels import reference
from kernels.gpu.sampling.configuration import SAMPLER, Configuration
from kernels.gpu.sampling.rows import BUFFER, GREEDY, PLAIN, WHOLE_ROW
from kernels.gpu.sampling.sampler import draw
from kernels.interface import SamplingTensors
from tests.kernels.sampling_rows import Row, batch
from tests.kernels.steps import on

__all__ = [
    "BUFFER",
    "GREEDY",
    "PLAIN",
    "SMALL",
    "WHOLE_ROW",
    "assert_agrees",
    "drawn",
    "on",
    "shaped",
]

# So small that a few hundred tokens are several chunks, tiles and spans, and overflow the buffer.
SMALL = Configuration(span=16, spans=4, capacity=32, tile=32, wide_tile=64, chunk_warps=1, row_warps=1)


def shaped(kind: str, num_rows: int, vocab: int, seed: int = 0) -> Tensor:
    """float32 logits [num_rows, vocab]."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_rows, vocab, generator=generator)
    if kind == "random":
        return x * 3
    if kind == "peaked":
        x[:, :: max(1, vocab // 9)] += 12.0
        return x
    if kind == "flat":
        return x * 0.01
    if kind == "tied":
        return x.round()
    if kind == "banned":
        return torch.where(torch.rand(num_rows, vocab, generator=generator) < 0.02, x * 2, -math.inf)
    if kind == "equal":
        return torch.zeros(num_rows, vocab)
    raise ValueError(kind)


def drawn(
    logits: Tensor, rows: list[Row], device: torch.device, configuration: Configuration = SAMPLER
) -> tuple[Tensor, list[int]]:
    """(tokens, ways) of the Triton form."""
    sampling = on(batch(rows, logits.shape[1]), device)
    tokens, ways = draw(logits if logits.device == device else logits.to(device), sampling, configuration)
    assert tokens.dtype == torch.int64
    return tokens.cpu(), ways.tolist()


def assert_agrees(found: Tensor, logits: Tensor, sampling: SamplingTensors) -> None:
    """Token for token what the reference draws, but for two scores that are equal to 1e-4."""
    expected = reference.sample(logits, sampling)
    wide = reference.edit_logits(logits, sampling)
    for row in (found != expected).nonzero()[:, 0].tolist():
        temperature = float(sampling.temperature[row])
        assert temperature > 0, f"row {row}: {found[row]}, not {expected[row]}"
        scaled = (wide[row] - wide[row].max()) / temperature
        threshold = reference.truncation_threshold(
            scaled, int(sampling.top_k[row]), float(sampling.top_p[row]), float(sampling.min_p[row])
        )
        noise = reference.gumbel_noise(sampling.seeds[row : row + 1], sampling.positions[row : row + 1], len(scaled))
        scores = (scaled + noise[0]).masked_fill(scaled < threshold, -math.inf)
        gap = float(scores[expected[row]] - scores[found[row]])
        assert gap < 1e-4, f"row {row}: {found[row]}, not {expected[row]}, whose score is {gap} larger"
