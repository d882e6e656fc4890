"""Sampling and log-probabilities on the CPU, the forms of `reference.sample` and `reference.logprobs`.

A row with min_p, top_k or top_p is cut down to its few likely tokens before anything is sorted or drawn: at 150 000
tokens a sort takes as long as a small model's step. The other rows are drawn together. Bias and penalties touch the
logits that they are about, on a copy of the few rows that are at work.

Random words are numpy's uint32, which wraps and shifts as the definition wants at half the size of its int64. Must not
know requests.
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels.interface import Logprobs, SamplingTensors

# Elements of noise that are computed at once: they stay in the cache, and memory stays bounded at large vocabularies.
_NOISE_ELEMENTS = 2**18
_Words = np.ndarray[Any, np.dtype[np.uint32]]
_Longs = np.ndarray[Any, np.dtype[np.uint64]]


def sample(logits: Tensor, sampling: SamplingTensors) -> Tensor:
    """See `reference.sample`."""
    edits = _Edits(sampling, len(logits))
    if sampling.all_greedy and edits.is_empty:
        return logits.argmax(-1)
    vocab_size = logits.shape[1]
    temperature, top_k, top_p, min_p = (
        x.numpy() for x in (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p)
    )
    drawn = temperature > 0
    truncated = drawn & ((top_k > 0) & (top_k < vocab_size) | (top_p < 1.0) | (min_p > 0.0))
    k1, k2 = _row_keys(sampling.seeds.numpy().view(np.uint64), sampling.positions.numpy().view(np.uint64))
    tokens = np.empty(len(logits), dtype=np.int64)
    step = max(1, _NOISE_ELEMENTS // vocab_size)
    for start in range(0, len(logits), step):
        part = slice(start, min(start + step, len(logits)))
        edited = logits[part] if edits.is_empty else edits.apply(logits, part)
        if not drawn[part].all():
            tokens[part] = edited.argmax(-1).numpy()
        if not drawn[part].any():
            continue
        # float32, for half precision cannot hold the quotient; greedy rows, divided by zero, are not looked at.
        wide = edited.float()
        scaled = (wide - wide.amax(-1, keepdim=True)).div_(sampling.temperature[part, None])
        whole = np.flatnonzero(drawn[part] & ~truncated[part])
        if len(whole):
            noise = _negative_noise(
                np.arange(vocab_size, dtype=np.uint32), k1[start + whole, None], k2[start + whole, None]
            )
            rows = scaled if len(whole) == len(scaled) else scaled[torch.from_numpy(whole)]
            tokens[start + whole] = (rows - noise).argmax(-1).numpy()
        for row in np.flatnonzero(truncated[part]).tolist():
            at = start + row
            ids, values = _truncate(scaled[row], int(top_k[at]), float(top_p[at]), float(min_p[at]))
            noise = _negative_noise(ids.numpy().astype(np.uint32), k1[at], k2[at])
            tokens[at] = ids[int((values - noise).argmax())]
    return torch.from_numpy(tokens)


def logprobs(logits: Tensor, token_ids: Tensor, num_top: int) -> Logprobs:
    """See `reference.logprobs`. Needs twice the memory of the logits in float32."""
    # log_softmax treats each row by itself, whatever their number; a sum over one long row may be split among threads.
    logs = logits.log_softmax(-1, dtype=torch.float32)
    own = token_ids[:, None]
    top_ids = _top_ids(logits, min(num_top, logits.shape[1]))
    return Logprobs(
        chosen=logs.gather(1, own)[:, 0],
        ranks=(logits > logits.gather(1, own)).sum(-1) + 1,
        top_ids=top_ids,
        top=logs.gather(1, top_ids),
    )


def _top_ids(logits: Tensor, num_top: int) -> Tensor:
    """Ids of the largest logits [rows, num_top], best first, equals by id: topk promises no order among equals."""
    if num_top == 0:
        return torch.empty(len(logits), 0, dtype=torch.int64)
    # One more than asked for shows whether the last place is shared with tokens that were left out.
    values, ids = logits.topk(min(num_top + 1, logits.shape[1]))
    shared = values[:, num_top - 1] == values[:, -1] if values.shape[1] > num_top else torch.zeros(len(logits))
    ids, values = ids[:, :num_top], values[:, :num_top]
    ids, order = ids.sort(-1)
    order = values.gather(1, order).sort(dim=-1, descending=True, stable=True).indices
    ids = ids.gather(1, order)
    for row in shared.nonzero()[:, 0].tolist():
        candidates = (logits[row] >= values[row, -1]).nonzero()[:, 0]
        order = logits[row][candidates].sort(descending=True, stable=True).indices
        ids[row] = candidates[order[:num_top]]
    return ids


class _Edits:
    """`reference.edit_logits` for some rows of the batch at a time."""

    def __init__(self, sampling: SamplingTensors, num_rows: int) -> None:
        self._sampling = sampling
        groups = (sampling.allowed, sampling.bias, sampling.penalties)
        self.is_empty = not any(groups)
        if self.is_empty:
            return
        # Entries are sorted by row: those of rows [i, j) are [bounds[i], bounds[j]).
        self._bounds = [
            np.zeros(num_rows + 1, dtype=np.int64)
            if group is None
            else np.searchsorted(group.rows.numpy(), np.arange(num_rows + 1))
            for group in groups
        ]

    def apply(self, logits: Tensor, part: slice) -> Tensor:
        """The edited rows of `part` in float32, a copy; or the rows as they are if nothing changes them."""
        allowed, bias, penalties = (slice(b[part.start], b[part.stop]) for b in self._bounds)
        if all(entries.start == entries.stop for entries in (allowed, bias, penalties)):
            return logits[part]
        wide = logits[part].to(torch.float32, copy=True)
        x, sampling = wide.numpy(), self._sampling
        if sampling.allowed is not None:
            rows = sampling.allowed.rows[allowed].tolist()
            for row, mask in zip(rows, sampling.allowed.mask[allowed].numpy(), strict=True):
                np.copyto(x[row - part.start], -np.inf, where=~mask)
        if sampling.bias is not None:
            at = sampling.bias.rows[bias].numpy() - part.start, sampling.bias.token_ids[bias].numpy()
            x[at] += sampling.bias.values[bias].numpy()
        if sampling.penalties is not None:
            held = sampling.penalties
            row_of, counts = held.rows[penalties].numpy(), held.counts[penalties].numpy()
            at = row_of - part.start, held.token_ids[penalties].numpy()
            repetition, frequency, presence = (
                column.numpy()[row_of] for column in (held.repetition, held.frequency, held.presence)
            )
            y = x[at]
            y = np.where(y > 0, y / repetition, y * repetition)
            y -= counts.astype(np.float32) * frequency
            y -= (counts > 0) * presence
            x[at] = y
        return wide


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


def _truncate(scaled: Tensor, top_k: int, top_p: float, min_p: float) -> tuple[Tensor, Tensor]:
    """Ids, ascending, and values of the tokens of one row that `reference.truncation_threshold` keeps."""
    ids, values = None, scaled
    if min_p > 0.0:
        ids = (scaled >= math.log(min_p)).nonzero().squeeze(1)
        values = scaled[ids]
    if 0 < top_k < len(values):
        kept = (values >= values.topk(top_k, sorted=False).values.amin()).nonzero().squeeze(1)
        ids, values = kept if ids is None else ids[kept], values[kept]
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
