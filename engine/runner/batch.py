"""From a step's schedule to tensors: `InputBatch`, and the block tables that stay between steps.

Work per sequence is a few list and array operations, work per token is numpy's. Must not know the model.
"""

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.runner.logprobs import LogprobRows, prompt_rows
from engine.sampling import SamplingBatch, SamplingState
from engine.sequence import SchedulerOutput, Sequence
from kernels import AttentionMetadata

IntArray = np.ndarray[Any, np.dtype[np.signedinteger[Any]]]


@dataclasses.dataclass(frozen=True, slots=True)
class InputBatch:
    """One step as tensors. T tokens of S scheduled sequences, in the schedule's order.

    input_ids, positions: int64 [T]. logits_indices: int64, the token whose logits each sampled row needs.
    prompt_logprobs: the tokens whose logits predict prompt tokens that somebody asks about, if anybody does.
    """

    input_ids: Tensor
    positions: Tensor
    attention: AttentionMetadata
    logits_indices: Tensor
    sampling: SamplingBatch
    prompt_logprobs: LogprobRows | None


class BlockTables:
    """Block ids of the running sequences, one fixed row each: int32 [max_num_seqs, max_blocks].

    A row is right if it holds the sequence's list, whoever wrote it: rows are handed on, and a preempted sequence comes
    back with other blocks. A list only ever grows, so identity and length tell whether a row is current, at the same
    cost for every length, and nothing has to be told to the runner.
    """

    def __init__(self, max_num_seqs: int, max_blocks: int) -> None:
        self._table: IntArray = np.zeros((max_num_seqs, max_blocks), dtype=np.int32)
        # The list that a row holds, kept alive so that no other can have its identity, and how much of it.
        self._written: list[tuple[list[int] | None, int]] = [(None, 0)] * max_num_seqs

    def update(self, sequence: Sequence) -> None:
        """Make the sequence's row hold its blocks, and the null block after them."""
        block_ids = sequence.block_ids
        written, num_written = self._written[sequence.row]
        if written is block_ids and num_written == len(block_ids):
            return
        row = self._table[sequence.row]
        if written is not block_ids:
            row[len(block_ids) : num_written] = 0  # the null block
            num_written = 0
        row[num_written : len(block_ids)] = block_ids[num_written:]
        self._written[sequence.row] = (block_ids, len(block_ids))

    def rows(self, rows: IntArray, num_blocks: int) -> IntArray:
        """A copy of the first `num_blocks` of these rows, [len(rows), num_blocks]."""
        return self._table[rows, :num_blocks]


class BatchBuilder:
    """Builds each step's `InputBatch` from state that it keeps per row."""

    def __init__(self, tables: BlockTables, sampling: SamplingState, block_size: int) -> None:
        self._block_size = block_size
        self._tables = tables
        self._sampling = sampling

    def build(self, output: SchedulerOutput) -> InputBatch:
        """The batch of a schedule with at least one pair."""
        scheduled = output.scheduled
        for sequence, _ in scheduled:
            self._tables.update(sequence)
            self._sampling.update(sequence)
        # One pass over Python objects, into one array; all that follows is numpy's. A flat list is twice as fast as one
        # of tuples.
        numbers = [x for s, n in scheduled for x in (s.row, s.num_computed_tokens, n, len(s.token_ids))]
        rows, num_computed, num_scheduled, num_known = np.array(numbers, dtype=np.int64).reshape(-1, 4).T
        seq_lens = num_computed + num_scheduled
        max_query_len, max_seq_len = int(num_scheduled.max()), int(seq_lens.max())
        table = self._tables.rows(rows, -(-max_seq_len // self._block_size))

        query_start_loc = np.zeros(len(rows) + 1, dtype=np.int32)
        np.cumsum(num_scheduled, out=query_start_loc[1:])
        input_ids = _input_ids(output, int(query_start_loc[-1]), max_query_len)
        if max_query_len == 1:
            positions, owner = num_computed, np.arange(len(rows))
        else:
            owner = np.arange(len(rows)).repeat(num_scheduled)
            positions = np.arange(len(input_ids)) - (query_start_loc[:-1] - num_computed).repeat(num_scheduled)
        block_index, offset = np.divmod(positions, self._block_size)
        slots = table[owner, block_index].astype(np.int64) * self._block_size + offset

        sampled = np.flatnonzero(seq_lens == num_known)
        return InputBatch(
            input_ids=torch.from_numpy(input_ids),
            positions=torch.from_numpy(np.ascontiguousarray(positions)),
            attention=AttentionMetadata(
                slot_mapping=torch.from_numpy(slots),
                query_start_loc=torch.from_numpy(query_start_loc),
                seq_lens=torch.from_numpy(seq_lens.astype(np.int32)),
                block_table=torch.from_numpy(table),
                max_query_len=max_query_len,
                max_seq_len=max_seq_len,
                num_decodes=_num_decodes(num_scheduled),
            ),
            logits_indices=torch.from_numpy(query_start_loc[1:][sampled].astype(np.int64) - 1),
            sampling=self._sampling.batch(rows[sampled], num_known[sampled], tuple(sampled.tolist())),
            prompt_logprobs=prompt_rows(output.scheduled),
        )


def _num_decodes(num_scheduled: IntArray) -> int:
    """How many sequences at the front have one token in this step."""
    longer = np.flatnonzero(num_scheduled != 1)
    return int(longer[0]) if len(longer) else len(num_scheduled)


def _input_ids(output: SchedulerOutput, num_tokens: int, max_query_len: int) -> IntArray:
    """The scheduled tokens one after the other, int64 [num_tokens]."""
    if max_query_len == 1:
        ids = [s.token_ids[s.num_computed_tokens] for s, _ in output.scheduled]
        return np.array(ids, dtype=np.int64)
    input_ids = np.empty(num_tokens, dtype=np.int64)
    start = 0
    for sequence, num_scheduled in output.scheduled:
        first = sequence.num_computed_tokens
        input_ids[start : start + num_scheduled] = sequence.token_ids[first : first + num_scheduled]
        start += num_scheduled
    return input_ids
