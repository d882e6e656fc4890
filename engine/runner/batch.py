"""From a step's schedule to tensors: what is staged on the host, and what the device makes of it.

`StepBuilder.stage` is the host's half: some numpy operations per step, Python only for sequences that are new or in
their prompt. `StepBuilder.expand` is the device's half. A decode needs nothing of its sequence but its row, length and
place in the step: its token is the one that the row sampled last, which never has to be on the host for that.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from engine.runner.device import Device
from engine.runner.logprobs import LogprobRows, prompt_rows
from engine.runner.rows import NO_LOGPROBS, NOWHERE, Changes, Rows
from engine.runner.staging import Packet, Segment, Staging, padded
from engine.sampling import joined_biases
from engine.sequence import SchedulerOutput, Sequence
from engine.token_rules import TokenRules
from kernels import (
    NUM_SAMPLING_COLUMNS,
    AttentionMetadata,
    Kernels,
    LogitEdits,
    SamplingTensors,
    StepInputs,
    StepTables,
)

Array = np.ndarray[Any, np.dtype[Any]]
_ROW_TOKEN = -1  # in StepTables.token_ids


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StepSizes:
    """What of a step the host knows as numbers. S sequences of T tokens, padding included; N sampled rows.

    num_decodes: so many sequences, the first ones, have one token each.
    """

    num_seqs: int
    num_tokens: int
    num_sampled: int
    num_decodes: int
    max_query_len: int
    max_seq_len: int


@dataclasses.dataclass(frozen=True, slots=True)
class StagedStep:
    """One step on the host, ready to be sent.

    is_bucket: a step of decodes alone, each of which gives a token, padded to the size of a bucket.
    sampled: indices of the scheduled pairs whose last token gives a new one, as many as there are without padding.
    logprobs: the sampled rows that ask for log-probabilities, if any does. prompt_logprobs: the tokens whose logits
    predict prompt tokens that somebody asks about, if anybody does.
    """

    sizes: StepSizes
    is_bucket: bool
    packet: Packet
    changes: Changes
    tables: tuple[Segment, ...]
    biases: tuple[Segment, ...] | None
    has_edits: bool
    all_greedy: bool
    sampled: list[int]
    logprobs: LogprobRows | None
    prompt_logprobs: LogprobRows | None


@dataclasses.dataclass(frozen=True, slots=True)
class InputBatch:
    """One step on the device. T tokens, N sampled rows.

    input_ids, positions: int64 [T]. logits_indices: int64 [N], the token whose logits each sampled row needs.
    sample_rows: int32 [N], the row that each belongs to.
    """

    input_ids: Tensor
    positions: Tensor
    attention: AttentionMetadata
    logits_indices: Tensor
    sample_rows: Tensor


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StepLimits:
    """The largest step. max_blocks: of one sequence."""

    max_num_seqs: int
    max_num_tokens: int
    max_blocks: int
    block_size: int
    vocab_size: int
    eos_token_ids: tuple[int, ...] = ()


class _Advance(NamedTuple):
    """What a schedule means to the rows it names: entries by scheduled pair. prompts: those that need host tokens."""

    rows: Array
    num_scheduled: Array
    num_tokens: int
    seq_lens: Array
    is_sampled: Array
    are_all_sampled: bool
    prompts: list[tuple[int, Sequence]]
    changes: Changes


class StepBuilder:
    """Makes each step of what its schedule says, of rows that stay, and of buffers that stay where they are."""

    def __init__(self, device: Device, kernels: Kernels, limits: StepLimits) -> None:
        self._kernels = kernels
        self._limits = limits
        self.rows = Rows(device, limits.max_num_seqs, limits.max_blocks, limits.vocab_size)
        # At most, every row is new and gets a whole table; a place and a value for each word.
        most_changes = 2 * padded(limits.max_num_seqs * (limits.max_blocks + NUM_SAMPLING_COLUMNS))
        tables = 4 * padded(limits.max_num_seqs + 1) + padded(limits.max_num_tokens)
        self.staging = Staging(device, tables + most_changes)
        self.inputs = empty_inputs(device.torch_device, limits)
        self._ones = np.ones(limits.max_num_seqs, dtype=np.int64)
        self._count_up = np.arange(limits.max_num_seqs + 1)

    def stage(self, output: SchedulerOutput, bucket_of: Callable[[int], int | None]) -> StagedStep:
        """The host's half, for a schedule with at least one pair.

        bucket_of: to how many sequences a step of so many decodes is padded; None is not at all.
        """
        advance = self._advance(output)
        rows, seq_lens = advance.rows, advance.seq_lens
        num_seqs, num_tokens = len(rows), advance.num_tokens
        sampled_rows, sampled = rows, self._count_up[:num_seqs]
        if not advance.are_all_sampled:
            sampled = np.flatnonzero(advance.is_sampled)
            sampled_rows = rows[sampled]
        is_decode = num_tokens == num_seqs
        bucket = bucket_of(num_seqs) if is_decode and advance.are_all_sampled else None
        num_padding = 0 if bucket is None else bucket - num_seqs
        packet = self.staging.open()
        tables = self._pack_tables(packet, advance, num_padding)
        advance.changes.pack(packet)
        has_edits = bool(self.rows.has_rules[sampled_rows].any())
        biases = joined_biases([self.rows.rules[row] for row in sampled_rows.tolist()]) if has_edits else None
        return StagedStep(
            sizes=StepSizes(
                num_seqs=num_seqs + num_padding,
                num_tokens=num_tokens + num_padding,
                num_sampled=len(sampled) + num_padding,
                num_decodes=num_seqs + num_padding if is_decode else int(np.argmax(advance.num_scheduled != 1)),
                max_query_len=1 if is_decode else int(advance.num_scheduled.max()),
                max_seq_len=int(seq_lens.max()),
            ),
            is_bucket=bucket is not None,
            packet=packet,
            changes=advance.changes,
            tables=tables,
            biases=None if biases is None else tuple(packet.put(part) for part in biases),
            has_edits=has_edits,
            all_greedy=not self.rows.temperature[sampled_rows].any(),
            sampled=sampled.tolist(),
            logprobs=self._logprob_rows(packet, sampled, sampled_rows),
            prompt_logprobs=_prompt_logprobs(packet, advance) if advance.prompts else None,
        )

    def _logprob_rows(self, packet: Packet, sampled: Array, sampled_rows: Array) -> LogprobRows | None:
        num_tops = self.rows.num_logprobs[sampled_rows]
        asking = np.flatnonzero(num_tops != NO_LOGPROBS)
        if not len(asking):
            return None
        pairs = zip(sampled[asking].tolist(), num_tops[asking].tolist(), strict=True)
        return LogprobRows(packet.put(asking), None, tuple((pair, 1, num_top) for pair, num_top in pairs))

    def _advance(self, output: SchedulerOutput) -> _Advance:
        """Bring the rows to where this step leaves them, and gather what the device must be told of that."""
        state, scheduled = self.rows, output.scheduled
        held, changes = state.held, Changes(state)
        sequences = [sequence for sequence, _ in scheduled]
        counts = [num_tokens for _, num_tokens in scheduled]
        num_seqs, num_tokens = len(counts), sum(counts)
        for sequence in [s for s in sequences if held[s.row] is not s.block_ids]:
            state.num_computed[sequence.row] = sequence.num_computed_tokens
            state.sampled_at[sequence.row] = NOWHERE
            changes.grow(sequence)
            if state.takes(sequence):
                changes.take(sequence, self._rules_of(sequence))
        rows = np.array([sequence.row for sequence in sequences])
        num_scheduled = self._ones[:num_seqs] if num_tokens == num_seqs else np.array(counts)
        num_computed = state.num_computed[rows]
        seq_lens = num_computed + num_scheduled
        # The row's last token is on the device, and is all that the sequence lacks.
        is_sampled = state.sampled_at[rows] == num_computed
        prompts = [(i, sequences[i]) for i in np.flatnonzero(~is_sampled).tolist()]
        for i, sequence in prompts:
            is_sampled[i] = seq_lens[i] == sequence.num_tokens
        is_longer = seq_lens > state.num_blocks[rows] * self._limits.block_size
        for i in np.flatnonzero(is_longer).tolist():
            changes.grow(sequences[i])
        are_all_sampled = not prompts or bool(is_sampled.all())
        state.num_computed[rows] = seq_lens
        state.sampled_at[rows] = seq_lens if are_all_sampled else np.where(is_sampled, seq_lens, NOWHERE)
        return _Advance(rows, num_scheduled, num_tokens, seq_lens, is_sampled, are_all_sampled, prompts, changes)

    def _rules_of(self, sequence: Sequence) -> TokenRules | None:
        if not TokenRules.are_needed(sequence):
            return None
        return TokenRules(sequence, self._limits.vocab_size, self._limits.eos_token_ids)

    def _pack_tables(self, packet: Packet, advance: _Advance, num_padding: int) -> tuple[Segment, ...]:
        """The segments of `StepTables`, in the order of its fields. Their places depend on the step's sizes alone."""
        num_seqs, num_tokens = len(advance.rows), advance.num_tokens
        total = num_seqs + num_padding
        sizes = _table_sizes(total, num_tokens + num_padding)
        (rows, starts, seq_lens, places, token_ids), segments = zip(*map(packet.reserve, sizes), strict=True)
        rows[:num_seqs], rows[num_seqs:] = advance.rows, self.rows.null_row
        seq_lens[:num_seqs], seq_lens[num_seqs:] = advance.seq_lens, 0
        token_ids.fill(_ROW_TOKEN)
        if num_tokens == num_seqs:
            starts[:] = self._count_up[: total + 1]
        else:
            starts[0] = 0
            np.cumsum(advance.num_scheduled, out=starts[1:])
        if advance.are_all_sampled:
            places[:] = self._count_up[:total]
        else:
            places[:] = np.where(advance.is_sampled, np.cumsum(advance.is_sampled) - 1, -1)
        for i, sequence in advance.prompts:
            start, stop = int(starts[i]), int(starts[i + 1])
            first = int(advance.seq_lens[i]) - (stop - start)
            token_ids[start:stop] = sequence.token_ids[first : first + stop - start]
        return tuple(segments)

    def stage_padding(self, num_seqs: int) -> Packet:
        """A packet of a decode step that is padding alone, for warming up what is recorded at this size."""
        none = np.zeros(0, dtype=np.int64)
        packet = self.staging.open()
        advance = _Advance(none, none, 0, none, none, True, [], Changes(self.rows))
        self._pack_tables(packet, advance, num_seqs)
        return packet

    def bucket_tables(self, num_seqs: int) -> StepTables:
        """Where the tables of every decode step of this size lie on the device."""
        return StepTables(*self.staging.words(_table_sizes(num_seqs, num_seqs)))

    def receive(self, step: StagedStep) -> StepTables:
        """The device's half, first part: take the packet over, and change the rows that the step changes."""
        step.packet.send()
        step.changes.apply(step.packet, self._kernels)
        return StepTables(*(step.packet.on_device(segment) for segment in step.tables))

    def expand(self, tables: StepTables, sizes: StepSizes) -> InputBatch:
        """The device's half, second part. It depends on the sizes and on what is on the device: it can be recorded."""
        max_blocks = -(-sizes.max_seq_len // self._limits.block_size)
        inputs = self.inputs
        self._kernels.expand_step(tables, self.rows.state, self._limits.block_size, max_blocks, inputs)
        num_tokens, num_sampled = sizes.num_tokens, sizes.num_sampled
        return InputBatch(
            input_ids=inputs.input_ids[:num_tokens],
            positions=inputs.positions[:num_tokens],
            attention=AttentionMetadata(
                slot_mapping=inputs.slot_mapping[:num_tokens],
                query_start_loc=tables.query_start_loc,
                seq_lens=tables.seq_lens,
                block_table=inputs.block_table[: sizes.num_seqs, :max_blocks],
                max_query_len=sizes.max_query_len,
                max_seq_len=sizes.max_seq_len,
                num_decodes=sizes.num_decodes,
            ),
            logits_indices=inputs.logits_indices[:num_sampled],
            sample_rows=inputs.sample_rows[:num_sampled],
        )

    def sampling(self, num_sampled: int, *, all_greedy: bool, edits: LogitEdits | None = None) -> SamplingTensors:
        """How the first `num_sampled` rows of the step that was expanded last are sampled."""
        inputs, n = self.inputs, num_sampled
        return SamplingTensors(
            temperature=inputs.temperature[:n],
            top_k=inputs.top_k[:n],
            top_p=inputs.top_p[:n],
            min_p=inputs.min_p[:n],
            seeds=inputs.seeds[:n],
            positions=inputs.sample_positions[:n],
            all_greedy=all_greedy,
            edits=edits,
        )

    def edits(self, step: StagedStep) -> LogitEdits:
        """What changes the logits of the rows that really sample in the step that was expanded last."""
        inputs, state, n = self.inputs, self.rows.state, len(step.sampled)
        if step.biases is None:
            starts = torch.zeros(n + 1, dtype=torch.int32, device=state.masks.device)
            ids, values = starts[:1], starts[:1]
        else:
            starts, ids, values = (step.packet.on_device(segment) for segment in step.biases)
        return LogitEdits(
            bitmask=state.masks,
            mask_row=inputs.mask_row[:n],
            bias_start=starts,
            bias_ids=ids,
            bias_values=values.view(torch.float32),
            counts=state.counts,
            count_slot=inputs.count_slot[:n],
            repetition=inputs.repetition[:n],
            frequency=inputs.frequency[:n],
            presence=inputs.presence[:n],
        )


def _table_sizes(num_seqs: int, num_tokens: int) -> tuple[int, ...]:
    """Of the fields of `StepTables`."""
    return num_seqs, num_seqs + 1, num_seqs, num_seqs, num_tokens


def empty_inputs(device: torch.device, limits: StepLimits) -> StepInputs:
    """Buffers for the largest step. What no step has written yet is zero."""

    def row(size: int, dtype: torch.dtype) -> Tensor:
        return torch.zeros(size, dtype=dtype, device=device)

    tokens, seqs = limits.max_num_tokens, limits.max_num_seqs
    i32, i64, f32 = torch.int32, torch.int64, torch.float32
    return StepInputs(
        input_ids=row(tokens, i64),
        positions=row(tokens, i64),
        slot_mapping=row(tokens, i64),
        block_table=row(seqs * limits.max_blocks, i32).view(seqs, limits.max_blocks),
        logits_indices=row(seqs, i64),
        sample_rows=row(seqs, i32),
        temperature=row(seqs, f32),
        top_k=row(seqs, i32),
        top_p=row(seqs, f32),
        min_p=row(seqs, f32),
        seeds=row(seqs, i64),
        sample_positions=row(seqs, i64),
        mask_row=row(seqs, i32),
        count_slot=row(seqs, i32),
        repetition=row(seqs, f32),
        frequency=row(seqs, f32),
        presence=row(seqs, f32),
    )


def _prompt_logprobs(packet: Packet, advance: _Advance) -> LogprobRows | None:
    asking = [(i, s) for i, s in advance.prompts if s.request.params.prompt_logprobs is not None]
    if not asking:
        return None
    starts = [0, *np.cumsum(advance.num_scheduled).tolist()]
    return prompt_rows(packet, asking, starts, (advance.seq_lens - advance.num_scheduled).tolist())
