"""Sampling and log-probabilities on the CPU, the forms of `reference.sample` and `reference.logprobs`.

Edits and choice are native/sample.c. Must not know requests.
"""

import ctypes
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels.cpu.native import Native, Sampling
from kernels.interface import LogitEdits, Logprobs, SamplingTensors

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
        keys = _row_keys(sampling.seeds.numpy().view(np.uint64), sampling.positions.numpy().view(np.uint64))
        columns = [x.contiguous() for x in (sampling.temperature, sampling.top_p, sampling.min_p, sampling.top_k)]
        tokens = torch.empty(num_rows, dtype=torch.int64)
        arguments = Sampling(
            logits.dtype == torch.bfloat16,
            vocab_size,
            logits.data_ptr(),
            logits.stride(0) * logits.element_size(),
            *(column.data_ptr() for column in columns),
            *(words.ctypes.data for words in keys),
            tokens.data_ptr(),
            *_edit_pointers(sampling.edits),
        )
        self._native.sample(ctypes.byref(arguments), num_rows)
        return tokens


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


def _edit_pointers(edits: LogitEdits | None) -> list[int | None]:
    """The fields in the order of sample.c; all None where there are no edits."""
    if edits is None:
        return [None] * 10
    fields = (
        edits.bitmask, edits.mask_row, edits.bias_start, edits.bias_ids, edits.bias_values,
        edits.counts, edits.count_slot, edits.repetition, edits.frequency, edits.presence,
    )  # fmt: skip
    return [field.data_ptr() for field in fields]


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
