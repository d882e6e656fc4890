"""Sampling on the CPU, the form of `reference.sample`.

A row with top_k or top_p is cut down to its few likely tokens before anything is sorted or drawn: at 150 000 tokens a
sort takes as long as a small model's step. The other rows are drawn together.

Random words are numpy's uint32, which wraps and shifts as the definition wants at half the size of its int64. Must not
know requests.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels.interface import SamplingTensors

# Elements of noise that are computed at once: they stay in the cache, and memory stays bounded at large vocabularies.
_NOISE_ELEMENTS = 2**18
_Words = np.ndarray[Any, np.dtype[np.uint32]]
_Longs = np.ndarray[Any, np.dtype[np.uint64]]


def sample(logits: Tensor, sampling: SamplingTensors) -> Tensor:
    """See `reference.sample`."""
    if sampling.all_greedy:
        return logits.argmax(-1)
    vocab_size = logits.shape[1]
    temperature, top_k, top_p = (x.numpy() for x in (sampling.temperature, sampling.top_k, sampling.top_p))
    drawn = temperature > 0
    truncated = drawn & ((top_k > 0) & (top_k < vocab_size) | (top_p < 1.0))
    k1, k2 = _row_keys(sampling.seeds.numpy().view(np.uint64), sampling.positions.numpy().view(np.uint64))
    tokens = np.empty(len(logits), dtype=np.int64)
    step = max(1, _NOISE_ELEMENTS // vocab_size)
    for start in range(0, len(logits), step):
        part = slice(start, start + step)
        if not drawn[part].all():
            tokens[part] = logits[part].argmax(-1).numpy()
        if not drawn[part].any():
            continue
        # float32, for half precision cannot hold the quotient; greedy rows, divided by zero, are not looked at.
        wide = logits[part].float()
        scaled = (wide - wide.amax(-1, keepdim=True)).div_(sampling.temperature[part, None])
        whole = np.flatnonzero(drawn[part] & ~truncated[part])
        if len(whole):
            noise = _negative_noise(
                np.arange(vocab_size, dtype=np.uint32), k1[start + whole, None], k2[start + whole, None]
            )
            tokens[start + whole] = (scaled[torch.from_numpy(whole)] - noise).argmax(-1).numpy()
        for row in np.flatnonzero(truncated[part]).tolist():
            at = start + row
            ids, values = _truncate(scaled[row], int(top_k[at]), float(top_p[at]))
            noise = _negative_noise(ids.numpy().astype(np.uint32), k1[at], k2[at])
            tokens[at] = ids[int((values - noise).argmax())]
    return torch.from_numpy(tokens)


def _fmix32(h: _Words) -> _Words:
    """`reference.fmix32`, in place."""
    h ^= h >> np.uint32(16)
    h *= np.uint32(0x85EBCA6B)
    h ^= h >> np.uint32(13)
    h *= np.uint32(0xC2B2AE35)
    h ^= h >> np.uint32(16)
    return h


def _row_keys(seeds: _Longs, positions: _Longs) -> tuple[_Words, _Words]:
    """`reference.row_keys`; both [rows]."""
    golden = np.uint32(0x9E3779B9)
    a = _fmix32(seeds.astype(np.uint32) + golden)
    a = _fmix32(a ^ (seeds >> np.uint64(32)).astype(np.uint32))
    k1 = _fmix32(a ^ positions.astype(np.uint32))
    return k1, _fmix32((k1 + golden) ^ (positions >> np.uint64(32)).astype(np.uint32))


def _negative_noise(tokens: _Words, k1: Any, k2: Any) -> Tensor:
    """log(-log1p(-v)) of `reference.gumbel_noise` for token ids and the two uint32 words of their rows, broadcast."""
    h = _fmix32(tokens ^ k1)
    h += k2
    v = torch.from_numpy(h.astype(np.float32))
    return v.add_(0.5).mul_(2.0**-32).clamp_(max=1.0 - 2.0**-24).neg_().log1p_().neg_().log_()


def _truncate(scaled: Tensor, top_k: int, top_p: float) -> tuple[Tensor, Tensor]:
    """Ids, ascending, and values of the tokens of one row that `reference.truncation_threshold` keeps."""
    ids, values = None, scaled
    if 0 < top_k < len(scaled):
        ids = (scaled >= scaled.topk(top_k, sorted=False).values.amin()).nonzero().squeeze(1)
        values = scaled[ids]
    if top_p < 1.0:
        weights = values.exp()
        target = top_p * float(weights.sum(dtype=torch.float64))
        # Tokens below this weight, all together, have less mass than top_p leaves out: none of them is kept, and there
        # is no need to sort them. The factor leaves room for rounding.
        least = 0.5 * (1.0 - top_p) / top_p * target / len(weights)
        likely = (weights >= least).nonzero().squeeze(1)
        ids, values, weights = likely if ids is None else ids[likely], values[likely], weights[likely]
        ordered, order = weights.sort(descending=True)
        num_kept = int((ordered.cumsum(0, dtype=torch.float64) < target).sum()) + 1
        kept = values >= values[order[min(num_kept, len(ordered)) - 1]]
        ids, values = ids[kept], values[kept]
    if ids is None:
        raise ValueError("the row is not truncated")
    return ids, values
