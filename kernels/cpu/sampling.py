"""Sampling and log-probabilities on the CPU, the forms of `reference.sample` and `reference.logprobs`.

Bias and penalties touch the logits that they are about, on a copy of the few rows that are at work; the choice itself
is native/sample.c. Must not know requests.
"""

import ctypes
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels.cpu.native import Native, Sampling
from kernels.interface import Logprobs, SamplingTensors

# Elements of edited rows that are in memory at once.
_EDITED_ELEMENTS = 2**22
_Words = np.ndarray[Any, np.dtype[np.uint32]]
_Longs = np.ndarray[Any, np.dtype[np.uint64]]


class Sampler:
    """See `reference.sample`, for logits in float32 or bfloat16."""

    def __init__(self, native: Native) -> None:
        self._native = native

    def __call__(self, logits: Tensor, sampling: SamplingTensors) -> Tensor:
        """One token id per row of logits [rows, vocab]; int64 [rows]."""
        logits = logits.contiguous()
        num_rows, vocab_size = logits.shape
        edits = _Edits(sampling, num_rows)
        keys = _row_keys(sampling.seeds.numpy().view(np.uint64), sampling.positions.numpy().view(np.uint64))
        tokens = torch.empty(num_rows, dtype=torch.int64)
        step = num_rows if edits.is_empty else max(1, _EDITED_ELEMENTS // vocab_size)
        for start in range(0, num_rows, step):
            part = slice(start, min(start + step, num_rows))
            edited = logits[part] if edits.is_empty else edits.apply(logits, part)
            self._choose(edited, sampling, part, keys, tokens[part])
        return tokens

    def _choose(
        self, logits: Tensor, sampling: SamplingTensors, part: slice, keys: tuple[_Words, _Words], tokens: Tensor
    ) -> None:
        columns = [x[part] for x in (sampling.temperature, sampling.top_p, sampling.min_p, sampling.top_k)]
        arguments = Sampling(
            logits.dtype == torch.bfloat16,
            logits.shape[1],
            logits.data_ptr(),
            logits.stride(0) * logits.element_size(),
            *(column.data_ptr() for column in columns),
            *(words[part].ctypes.data for words in keys),
            tokens.data_ptr(),
        )
        self._native.sample(ctypes.byref(arguments), len(logits))


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
