"""Sampling on the CPU, the form of `reference.sample`: whole batches where rows agree, no sort where a top-k will do.

The 32-bit words of the noise live in int32, whose products wrap as the definition wants and whose rows are half the
size of the definition's int64. Must not know requests.
"""

import torch
from torch import Tensor

from kernels.interface import SamplingTensors
from kernels.reference import row_keys

# A distribution's mass almost always lies within this many tokens; a row where it does not is sorted whole.
_CANDIDATES = 1024
# Rows of noise that are computed at once: they stay in the cache, and memory stays bounded at large vocabularies.
_NOISE_ELEMENTS = 2**18


def sample(logits: Tensor, sampling: SamplingTensors) -> Tensor:
    """See `reference.sample`."""
    if sampling.all_greedy:
        return logits.argmax(-1)
    if bool((sampling.temperature > 0).all()):
        return _draw(logits, sampling)
    tokens = logits.argmax(-1)
    rows = sampling.temperature.nonzero().squeeze(1)
    picked = SamplingTensors(
        temperature=sampling.temperature[rows],
        top_k=sampling.top_k[rows],
        top_p=sampling.top_p[rows],
        seeds=sampling.seeds[rows],
        positions=sampling.positions[rows],
        all_greedy=False,
        any_truncated=sampling.any_truncated,
    )
    tokens[rows] = _draw(logits[rows], picked)
    return tokens


def _draw(logits: Tensor, sampling: SamplingTensors) -> Tensor:
    wide = logits.float()
    scaled = (wide - wide.amax(-1, keepdim=True)).div_(sampling.temperature[:, None])
    vocab_size = scaled.shape[1]
    if sampling.any_truncated:
        rows = ((sampling.top_k > 0) & (sampling.top_k < vocab_size) | (sampling.top_p < 1.0)).nonzero().squeeze(1)
        if len(rows):
            picked = scaled[rows]
            threshold = _thresholds(picked, sampling.top_k[rows], sampling.top_p[rows])
            scaled[rows] = picked.masked_fill_(picked < threshold[:, None], float("-inf"))
    k1, k2 = row_keys(sampling.seeds, sampling.positions)
    step = max(1, _NOISE_ELEMENTS // vocab_size)
    for start in range(0, len(scaled), step):
        part = slice(start, start + step)
        scaled[part].sub_(_negative_noise(k1[part].int(), k2[part].int(), vocab_size))
    return scaled.argmax(-1)


def _negative_noise(k1: Tensor, k2: Tensor, vocab_size: int) -> Tensor:
    """log(-log1p(-v)) [rows, vocab_size] of `reference.gumbel_noise`, for the two words of each row as int32."""
    h = torch.arange(vocab_size, dtype=torch.int32) ^ k1[:, None]
    _shift_xor(h, 16).mul_(0x85EBCA6B - 2**32)
    _shift_xor(h, 13).mul_(0xC2B2AE35 - 2**32)
    _shift_xor(h, 16).add_(k2[:, None])
    # An int32 word as a float is unsigned minus 2^32 where it is negative; the sum is rounded to float32 once.
    v = h.to(torch.float64)
    v = torch.where(h < 0, v + 2.0**32, v).to(torch.float32)
    v = v.add_(0.5).mul_(2.0**-32).clamp_(max=1.0 - 2.0**-24)
    return v.neg_().log1p_().neg_().log_()


def _shift_xor(h: Tensor, bits: int) -> Tensor:
    """H ^= h >> bits, the shift filling with zeros, in place."""
    return h.bitwise_xor_((h >> bits).bitwise_and_((1 << (32 - bits)) - 1))


def _thresholds(scaled: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """`reference.truncation_threshold` of each row; [rows]."""
    vocab_size = scaled.shape[1]
    num_kept = top_k.long().masked_fill(top_k == 0, vocab_size).clamp_(max=vocab_size)
    # One candidate more than is wanted would not show all ties of the last one: the ties are found by value below.
    num_candidates = min(vocab_size, max(_CANDIDATES, int(num_kept[top_k > 0].max()) if bool((top_k > 0).any()) else 0))
    ordered = scaled.topk(num_candidates, dim=-1).values
    limited = num_kept <= num_candidates
    by_k = ordered.gather(1, (num_kept.clamp(max=num_candidates) - 1)[:, None])
    by_k = by_k.masked_fill(~limited[:, None], float("-inf"))
    if bool((top_p >= 1.0).all()):
        return by_k[:, 0]
    # Mass of everything that top_k keeps, ties included, so the whole row is summed and not the candidates.
    peak = ordered[:, :1]
    total = (scaled - peak).exp_().masked_fill_(scaled < by_k, 0.0).sum(-1, keepdim=True, dtype=torch.float64)
    by_p, reached = _prefix_threshold(ordered, peak, by_k, total, top_p)
    if not bool(reached.all()):
        missing = (~reached).nonzero().squeeze(1)
        whole = scaled[missing].sort(-1, descending=True).values
        by_p[missing] = _prefix_threshold(whole, peak[missing], by_k[missing], total[missing], top_p[missing])[0]
    return torch.where(top_p < 1.0, torch.maximum(by_p, by_k[:, 0]), by_k[:, 0])


def _prefix_threshold(
    ordered: Tensor,
    peak: Tensor,
    by_k: Tensor,
    total: Tensor,
    top_p: Tensor,
) -> tuple[Tensor, Tensor]:
    """The value of the last token of the shortest prefix of `ordered` with mass top_p, and whether there is one."""
    mass = (ordered - peak).exp_().masked_fill_(ordered < by_k, 0.0).cumsum(-1, dtype=torch.float64)
    short = mass < top_p[:, None].double() * total
    reached = ~short[:, -1] | (top_p >= 1.0)
    index = short.sum(-1, keepdim=True).clamp_(max=ordered.shape[1] - 1)
    return ordered.gather(1, index)[:, 0], reached
