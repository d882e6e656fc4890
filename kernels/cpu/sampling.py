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
from kernels.interface import LogitEdits, Logprobs, SamplingTensors

# Elements of edited rows that are in memory at once.
_EDITED_ELEMENTS = 2**22
_Words = np.ndarray[Any, np.dtype[np.uint32]]
_Floats = np.ndarray[Any, np.dtype[np.float32]]
_Ints = np.ndarray[Any, np.dtype[np.int64]]
_Longs = np.ndarray[Any, np.dtype[np.uint64]]


class Sampler:
    """See `reference.sample`, for logits in float32 or bfloat16."""

    def __init__(self, native: Native) -> None:
        self._native = native

    def __call__(self, logits: Tensor, sampling: SamplingTensors) -> Tensor:
        """One token id per row of logits [rows, vocab]; int64 [rows]."""
        logits = logits.contiguous()
        num_rows, vocab_size = logits.shape
        edits = _Edits(sampling.edits)
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

    def __init__(self, edits: LogitEdits | None) -> None:
        self._edits = edits
        self._edited: _Ints = np.empty(0, dtype=np.int64)
        if edits is not None:
            starts = edits.bias_start.numpy()
            is_edited = (edits.mask_row.numpy() >= 0) | (edits.count_slot.numpy() >= 0) | (starts[1:] > starts[:-1])
            self._edited = np.flatnonzero(is_edited)
        self.is_empty = not len(self._edited)

    def apply(self, logits: Tensor, part: slice) -> Tensor:
        """The edited rows of `part` in float32, a copy; or the rows as they are if nothing changes them."""
        first, last = np.searchsorted(self._edited, (part.start, part.stop)).tolist()
        if first == last or self._edits is None:
            return logits[part]
        wide = logits[part].to(torch.float32, copy=True)
        x = wide.numpy()
        for row in self._edited[first:last].tolist():
            _edit_row(x[row - part.start], self._edits, row)
        return wide


def _edit_row(x: _Floats, edits: LogitEdits, row: int) -> None:
    """Change one row's logits [vocab] in place. What is costly is done for the tokens that it is about alone."""
    mask, slot = int(edits.mask_row[row]), int(edits.count_slot[row])
    if mask >= 0:
        # Bytes of a word in the order of its bits, on a little-endian machine.
        bits = np.unpackbits(edits.bitmask[mask].numpy().view(np.uint8), count=len(x), bitorder="little")
        np.copyto(x, -np.inf, where=bits == 0)
    first, last = edits.bias_start[row : row + 2].tolist()
    if first < last:
        x[edits.bias_ids[first:last].numpy()] += edits.bias_values[first:last].numpy()
    if slot >= 0:
        counts = edits.counts[slot].numpy()
        held = np.flatnonzero(counts)
        in_output = counts[held] >> 1
        repetition, frequency, presence = (
            np.float32(column[row].item()) for column in (edits.repetition, edits.frequency, edits.presence)
        )
        y = x[held]
        y = np.where(y > 0, y / repetition, y * repetition)
        y -= in_output.astype(np.float32) * frequency
        y -= (in_output > 0) * presence
        x[held] = y


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
