"""From sequences to the tensors that `Kernels.sample` wants. Knows sampling parameters; must not know the model."""

import dataclasses
from typing import Any

import numpy as np
import torch

from engine.sequence import Sequence
from engine.token_rules import FloatArray, IntArray, TokenRules
from kernels import AllowedTokens, Penalties, SamplingTensors, TokenBias

_LEAST_TOP_P = 1e-12
_NO_LOGPROBS = -1


@dataclasses.dataclass(frozen=True, slots=True)
class SamplingBatch:
    """The rows of logits that are sampled in a step, and how.

    tensors: one entry per sampled row. indices: which of the scheduled pairs each row belongs to.
    logprobs: (sampled row, how many most likely tokens) of the rows that ask for log-probabilities, ascending.
    """

    tensors: SamplingTensors
    indices: tuple[int, ...]
    logprobs: tuple[tuple[int, int], ...] = ()


class SamplingState:
    """Sampling parameters of the running sequences, one fixed row each, so that a step only gathers.

    A row is written when another sequence object takes it; parameters and seed of a sequence never change. What
    follows from a sequence's tokens is kept in its `TokenRules`, which catch up with whatever they have missed: a
    sequence that was preempted finds its row as it left it, or is written anew where it comes back.
    """

    def __init__(self, max_num_seqs: int, vocab_size: int, eos_token_ids: tuple[int, ...]) -> None:
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids
        self._owner: list[Sequence | None] = [None] * max_num_seqs
        self._temperature = np.zeros(max_num_seqs, dtype=np.float32)
        self._top_k = np.zeros(max_num_seqs, dtype=np.int32)
        self._top_p = np.ones(max_num_seqs, dtype=np.float32)
        self._min_p = np.zeros(max_num_seqs, dtype=np.float32)
        self._seed = np.zeros(max_num_seqs, dtype=np.uint64)
        self._penalties = np.zeros((3, max_num_seqs), dtype=np.float32)
        self._num_logprobs = np.full(max_num_seqs, _NO_LOGPROBS, dtype=np.int32)
        self._rules: list[TokenRules | None] = [None] * max_num_seqs
        self._has_rules = np.zeros(max_num_seqs, dtype=np.bool_)

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
        self._min_p[row] = params.min_p
        self._seed[row] = sequence.seed
        self._penalties[:, row] = params.repetition_penalty, params.frequency_penalty, params.presence_penalty
        self._num_logprobs[row] = _NO_LOGPROBS if params.logprobs is None else params.logprobs
        has_rules = TokenRules.are_needed(sequence)
        self._rules[row] = TokenRules(sequence, self._vocab_size, self._eos_token_ids) if has_rules else None
        self._has_rules[row] = has_rules

    def batch(
        self, rows: np.ndarray[Any, Any], positions: np.ndarray[Any, Any], indices: tuple[int, ...]
    ) -> SamplingBatch:
        """The batch of `rows` [n], whose new tokens have `positions` [n] in their sequences."""
        temperature = self._temperature[rows]
        num_logprobs = self._num_logprobs[rows]
        asking = np.flatnonzero(num_logprobs != _NO_LOGPROBS)
        allowed, bias, penalties = self._edits(rows) if self._has_rules[rows].any() else (None, None, None)
        tensors = SamplingTensors(
            temperature=torch.from_numpy(temperature),
            top_k=torch.from_numpy(self._top_k[rows]),
            top_p=torch.from_numpy(self._top_p[rows]),
            min_p=torch.from_numpy(self._min_p[rows]),
            seeds=torch.from_numpy(self._seed[rows].view(np.int64)),
            positions=torch.from_numpy(positions.astype(np.int64)),
            all_greedy=not temperature.any(),
            allowed=allowed,
            bias=bias,
            penalties=penalties,
        )
        logprobs = tuple(zip(asking.tolist(), num_logprobs[asking].tolist(), strict=True))
        return SamplingBatch(tensors, indices, logprobs)

    def _edits(self, rows: np.ndarray[Any, Any]) -> tuple[AllowedTokens | None, TokenBias | None, Penalties | None]:
        """What the rules of `rows` [n] have to say, by their place in the batch."""
        ruled = [(i, rules) for i, row in enumerate(rows.tolist()) if (rules := self._rules[row]) is not None]
        masks = [(i, rules.allowed) for i, rules in ruled if rules.allowed is not None]
        biases = [(i, *rules.bias()) for i, rules in ruled]
        held = [(i, *rules.counts.entries()) for i, rules in ruled if rules.counts is not None]
        allowed = bias = penalties = None
        if masks:
            places = torch.tensor([i for i, _ in masks], dtype=torch.int64)
            allowed = AllowedTokens(places, torch.from_numpy(np.stack([mask for _, mask in masks])))
        if any(len(ids) for _, ids, _ in biases):
            bias = TokenBias(*_joined(biases))
        if any(len(ids) for _, ids, _ in held):
            penalties = Penalties(*_joined(held), *torch.from_numpy(self._penalties[:, rows]))
        return allowed, bias, penalties


def _joined(
    entries: list[tuple[int, IntArray, FloatArray | IntArray]],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(rows, token ids, values) of all the entries (row, token ids, values), in their order: copies."""
    rows, token_ids, values = zip(*entries, strict=True)
    places = np.repeat(np.array(rows, dtype=np.int64), [len(ids) for ids in token_ids])
    ids, joined = np.concatenate(token_ids), np.concatenate(values)
    return torch.from_numpy(places), torch.from_numpy(ids), torch.from_numpy(joined)
