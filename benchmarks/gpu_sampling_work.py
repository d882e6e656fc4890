"""The sampler's and the log-probabilities' work for `benchmarks/gpu_kernels.py`, as `benchmarks/gpu_work.py` has it."""

import dataclasses
import functools
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_timing import num_sets
from benchmarks.gpu_work import Place, Work, launcher, relative_error
from kernels import AllowedTokens, Penalties, SamplingTensors, TokenBias, reference

_TEMPERATURE, _TOP_K, _TOP_P, _MIN_P = 0.8, 50, 0.9, 0.02
_NUM_HELD = 200  # tokens that a sequence holds already, and pays for
_NUM_BIASES = 4


def _logits(place: Place, num_rows: int, vocab_size: int) -> list[Tensor]:
    count = num_sets(2 * num_rows * vocab_size, place.cache_bytes)
    # Three times the normal distribution: about as peaked as a language model's.
    return [place.random(num_rows, vocab_size) * 3 for _ in range(count)]


def _sampling(place: Place, num_rows: int, *, has_filters: bool) -> SamplingTensors:
    def rows(value: float, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.full((num_rows,), value, dtype=dtype, device=place.device)

    return SamplingTensors(
        temperature=rows(_TEMPERATURE),
        top_k=rows(_TOP_K if has_filters else 0, torch.int32),
        top_p=rows(_TOP_P if has_filters else 1.0),
        min_p=rows(_MIN_P if has_filters else 0.0),
        seeds=torch.arange(num_rows, device=place.device) * 7919,
        positions=torch.arange(num_rows, device=place.device) + 100,
        all_greedy=False,
    )


def _edited(place: Place, sampling: SamplingTensors, vocab_size: int) -> tuple[SamplingTensors, Any]:
    """(the same rows with every kind of edit, those edits as the kernels take them)."""
    num_rows, device = len(sampling.temperature), place.device
    every = torch.arange(num_rows, device=device)
    num_held = min(_NUM_HELD, vocab_size // 4)
    num_words = -(-vocab_size // 32)
    bits = torch.rand(num_rows, num_words * 32, device=device) < 0.5
    words = (bits.view(num_rows, num_words, 32).long() << torch.arange(32, device=device)).sum(-1)
    order = torch.rand(num_rows, vocab_size, device=device).argsort(-1)
    held, biased = order[:, :num_held], order[:, num_held : num_held + _NUM_BIASES]
    in_output = torch.randint(0, 3, held.shape, device=device, dtype=torch.int32)
    counts = torch.zeros(num_rows, vocab_size, dtype=torch.int32, device=device)
    counts.scatter_(1, held, 2 * in_output + 1)
    values = torch.randn(biased.shape, device=device)
    costs = [torch.full((num_rows,), value, device=device) for value in (1.1, 0.1, 0.2)]
    edits = launcher("sampling", "LogitEdits")(
        torch.where(words >= 2**31, words - 2**32, words).to(torch.int32),
        every.to(torch.int32),
        torch.arange(0, (num_rows + 1) * _NUM_BIASES, _NUM_BIASES, dtype=torch.int32, device=device),
        biased.flatten().to(torch.int32),
        values.flatten(),
        counts,
        every.to(torch.int32),
        *costs,
    )
    return dataclasses.replace(
        sampling,
        allowed=AllowedTokens(every, bits[:, :vocab_size]),
        bias=TokenBias(every.repeat_interleave(_NUM_BIASES), biased.flatten(), values.flatten()),
        penalties=Penalties(every.repeat_interleave(num_held), held.flatten(), in_output.flatten(), *costs),
    ), edits


def _eager_plain(logits: Tensor) -> Tensor:
    weights = (logits.float() / _TEMPERATURE).softmax(-1)
    return (weights / torch.empty_like(weights).exponential_()).argmax(-1)


def _eager_filtered(logits: Tensor) -> Tensor:
    """The filters by a sort of every row, as is usual without a kernel for them."""
    ordered, ids = (logits.float() / _TEMPERATURE).sort(-1, descending=True)
    weights = ordered.softmax(-1)
    dropped = weights < _MIN_P * weights[:, :1]
    dropped[:, _TOP_K:] = True
    weights = weights.masked_fill(dropped, 0.0)
    weights = weights / weights.sum(-1, keepdim=True)
    weights = weights.masked_fill(weights.cumsum(-1) - weights >= _TOP_P, 0.0)
    best = (weights / torch.empty_like(weights).exponential_()).argmax(-1, keepdim=True)
    return ids.gather(1, best)[:, 0]


def sample(place: Place, num_rows: int, vocab_size: int, *, has_filters: bool, has_edits: bool) -> Work:
    """One token per row. Torch: softmax and an exponential race, with filters after a sort; no form for edits.

    The error is the share of rows whose token is not the reference's.
    """
    run, inputs_class = launcher("sampling", "sample"), launcher("sampling", "SamplerInputs")
    sets = _logits(place, num_rows, vocab_size)
    sampling = _sampling(place, num_rows, has_filters=has_filters)
    edits = None
    num_bytes = 2 * num_rows * vocab_size
    if has_edits:
        sampling, edits = _edited(place, sampling, vocab_size)
        num_bytes += num_rows * (4 * vocab_size + vocab_size // 8)
    fields = ("temperature", "top_k", "top_p", "min_p", "seeds", "positions")
    inputs = inputs_class(*(getattr(sampling, field) for field in fields), edits)

    def error() -> float:
        found = run(sets[0], inputs)
        return float((found != reference.sample(sets[0], sampling)).double().mean())

    peer = _eager_filtered if has_filters else _eager_plain
    return Work(
        ours=[functools.partial(run, one, inputs) for one in sets],
        peer=None if has_edits else [functools.partial(peer, one) for one in sets],
        num_bytes=num_bytes,
        num_flops=0,
        error=error,
    )


def logprobs(place: Place, num_rows: int, vocab_size: int, num_top: int) -> Work:
    """Log-probabilities of the chosen and the best tokens. Torch: `log_softmax`, `topk` and a count."""
    run = launcher("sampling", "logprobs")
    sets = _logits(place, num_rows, vocab_size)
    token_ids = torch.randint(0, vocab_size, (num_rows,), device=place.device)
    num_top = min(num_top, vocab_size)

    def peer(logits: Tensor) -> tuple[Tensor, ...]:
        logs = logits.float().log_softmax(-1)
        chosen = logs.gather(1, token_ids[:, None])
        return (chosen, (logs > chosen).sum(-1) + 1, *logs.topk(num_top))

    def error() -> float:
        found = run(sets[0], token_ids, num_top)
        expected = reference.logprobs(sets[0], token_ids, num_top)
        if not (torch.equal(found.ranks, expected.ranks) and torch.equal(found.top_ids, expected.top_ids)):
            return 1.0
        return max(relative_error(found.chosen, expected.chosen), relative_error(found.top, expected.top))

    return Work(
        ours=[functools.partial(run, one, token_ids, num_top) for one in sets],
        peer=[functools.partial(peer, one) for one in sets],
        num_bytes=2 * num_rows * vocab_size,
        num_flops=0,
        error=error,
    )
