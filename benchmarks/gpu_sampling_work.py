"""The sampler's and the log-probabilities' work for `benchmarks/gpu_kernels.py`, as `benchmarks/gpu_work.py` has it."""

import dataclasses
import functools

import torch
from torch import Tensor

from benchmarks.gpu_timing import num_sets
from benchmarks.gpu_work import Place, Work, launcher, relative_error
from kernels import LogitEdits, SamplingTensors, reference

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


def _edited(place: Place, sampling: SamplingTensors, vocab_size: int) -> SamplingTensors:
    """The same rows with every kind of edit."""
    num_rows, device = len(sampling.temperature), place.device
    every = torch.arange(num_rows, dtype=torch.int32, device=device)
    num_held = min(_NUM_HELD, vocab_size // 4)
    order = torch.rand(num_rows, vocab_size, device=device).argsort(-1)
    held, biased = order[:, :num_held], order[:, num_held : num_held + _NUM_BIASES]
    in_output = torch.randint(0, 3, held.shape, device=device, dtype=torch.int32)
    counts = torch.zeros(num_rows, vocab_size, dtype=torch.int32, device=device)
    counts.scatter_(1, held, 2 * in_output + 1)
    repetition, frequency, presence = (torch.full((num_rows,), value, device=device) for value in (1.1, 0.1, 0.2))
    edits = LogitEdits(
        # Random bits: half of the tokens are allowed.
        bitmask=torch.randint(-(2**31), 2**31, (num_rows, -(-vocab_size // 32)), dtype=torch.int32, device=device),
        mask_row=every,
        bias_start=torch.arange(0, (num_rows + 1) * _NUM_BIASES, _NUM_BIASES, dtype=torch.int32, device=device),
        bias_ids=biased.flatten().to(torch.int32),
        bias_values=torch.randn(biased.numel(), device=device),
        counts=counts,
        count_slot=every,
        repetition=repetition,
        frequency=frequency,
        presence=presence,
    )
    return dataclasses.replace(sampling, edits=edits)


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
    run = launcher("sampling", "sample")
    sets = _logits(place, num_rows, vocab_size)
    sampling = _sampling(place, num_rows, has_filters=has_filters)
    num_bytes = 2 * num_rows * vocab_size
    if has_edits:
        sampling = _edited(place, sampling, vocab_size)
        num_bytes += num_rows * (4 * vocab_size + vocab_size // 8)

    def error() -> float:
        found = run(sets[0], sampling)
        return float((found != reference.sample(sets[0], sampling)).double().mean())

    peer = _eager_filtered if has_filters else _eager_plain
    return Work(
        ours=[functools.partial(run, one, sampling) for one in sets],
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
