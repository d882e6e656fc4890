"""From sequences to the tensors that `Kernels.sample` wants. Knows sampling parameters; must not know the model."""

import dataclasses
from typing import Any

import numpy as np
import torch

from engine.sequence import Sequence
from kernels import SamplingTensors

_LEAST_TOP_P = 1e-12


@dataclasses.dataclass(frozen=True, slots=True)
class SamplingBatch:
    """The rows of logits that are sampled in a step, and how.

    tensors: one entry per sampled row. indices: which of the scheduled pairs each row belongs to.
    """

    tensors: SamplingTensors
    indices: tuple[int, ...]


class SamplingState:
    """Sampling parameters of the running sequences, one fixed row each, so that a step only gathers.

    A row is written when another sequence object takes it; parameters and seed of a sequence never change.
    """

    def __init__(self, max_num_seqs: int) -> None:
        self._owner: list[Sequence | None] = [None] * max_num_seqs
        self._temperature = np.zeros(max_num_seqs, dtype=np.float32)
        self._top_k = np.zeros(max_num_seqs, dtype=np.int32)
        self._top_p = np.ones(max_num_seqs, dtype=np.float32)
        self._seed = np.zeros(max_num_seqs, dtype=np.uint64)

    def update(self, sequence: Sequence) -> None:
        """Make the sequence's row hold its parameters."""
        row = sequence.row
        if self._owner[row] is sequence:
            return
        params = sequence.request.params
        self._owner[row] = sequence
        self._temperature[row] = params.temperature
        # Not zero even where float32 makes it so: the request asked for sampling, and 0 means greedy.
        if params.temperature > 0.0:
            self._temperature[row] = max(params.temperature, float(np.finfo(np.float32).tiny))
        self._top_k[row] = params.top_k
        # Likewise: any top_p up to a vocabulary's smallest possible maximum keeps the most likely token alone.
        self._top_p[row] = max(params.top_p, _LEAST_TOP_P)
        self._seed[row] = sequence.seed

    def batch(
        self, rows: np.ndarray[Any, Any], positions: np.ndarray[Any, Any], indices: tuple[int, ...]
    ) -> SamplingBatch:
        """The batch of `rows` [n], whose new tokens have `positions` [n] in their sequences."""
        temperature = self._temperature[rows]
        tensors = SamplingTensors(
            temperature=torch.from_numpy(temperature),
            top_k=torch.from_numpy(self._top_k[rows]),
            top_p=torch.from_numpy(self._top_p[rows]),
            seeds=torch.from_numpy(self._seed[rows].view(np.int64)),
            positions=torch.from_numpy(positions.astype(np.int64)),
            all_greedy=not temperature.any(),
        )
        return SamplingBatch(tensors, indices)
