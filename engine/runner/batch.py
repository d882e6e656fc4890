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
    back with other blocks. So each row is compared with what was written last, a C loop over a short list, and nothing
    has to be told to the runner.
    """

    def __init__(self, max_num_seqs: int, max_blocks: int) -> None:
        self._table: IntArray = np.zeros((max_num_seqs, max_blocks), dtype=np.int32)
        self._written: list[list[int]] = [[] for _ in range(max_num_seqs)]

    def update(self, sequence: Sequence) -> None:
        """Make the sequence's row hold its blocks, and the null block after them."""
        written, block_ids, row = self._written[sequence.row], sequence.block_ids, self._table[sequence.row]
        if written == block_ids:
            return
        num_kept = len(written)
        if written != block_ids[:num_kept]:
            row[: len(written)] = 0
            written.clear()
            num_kept = 0
        row[num_kept : len(block_ids)] = block_ids[num_kept:]
        written.extend(block_ids[num_kept:])

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
        token_ids: list[int] = []
        for sequence, num_tokens in output.scheduled:
            self._tables.update(sequence)
            self._sampling.update(sequence)
            start = sequence.num_computed_tokens
            token_ids += sequence.token_ids[start : start + num_tokens]
        columns = [(s.row, s.num_computed_tokens, n, len(s.token_ids)) for s, n in output.scheduled]
        rows, num_computed, num_scheduled, num_known = np.array(columns, dtype=np.int64).T
        seq_lens = num_computed + num_scheduled
        max_query_len, max_seq_len = int(num_scheduled.max()), int(seq_lens.max())
        table = self._tables.rows(rows, -(-max_seq_len // self._block_size))

        ends = num_scheduled.cumsum()
        query_start_loc = np.concatenate(([0], ends))
        if max_query_len == 1:
            positions, owner = num_computed, np.arange(len(rows))
        else:
            owner = np.arange(len(rows)).repeat(num_scheduled)
            positions = np.arange(len(token_ids)) - (query_start_loc[:-1] - num_computed).repeat(num_scheduled)
        block_index, offset = np.divmod(positions, self._block_size)
        slots = table[owner, block_index].astype(np.int64) * self._block_size + offset

        reaches_end = seq_lens == num_known
        sampled = np.flatnonzero(reaches_end)
        return InputBatch(
            input_ids=torch.tensor(token_ids, dtype=torch.int64),
            positions=torch.from_numpy(positions),
            attention=AttentionMetadata(
                slot_mapping=torch.from_numpy(slots),
                query_start_loc=torch.from_numpy(query_start_loc.astype(np.int32)),
                seq_lens=torch.from_numpy(seq_lens.astype(np.int32)),
                block_table=torch.from_numpy(table),
                max_query_len=max_query_len,
                max_seq_len=max_seq_len,
            ),
            logits_indices=torch.from_numpy(ends[sampled] - 1),
            sampling=self._sampling.batch(rows[sampled], num_known[sampled], tuple(sampled.tolist())),
            prompt_logprobs=prompt_rows(output.scheduled),
        )
