"""What the device sees of a step, beside what its sequences say: rows handed on, tokens that the host does not know."""

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.api import SamplingParams
from engine.runner.batch import InputBatch, StagedStep, StepBuilder, StepLimits
from engine.runner.staging import Staging
from engine.sequence import SchedulerOutput, Sequence
from engine.token_rules import TokenRules
from kernels import for_device
from tests.model.driver import make_sequence
from tests.model.late_device import LateDevice

BLOCK_SIZE = 16
VOCAB_SIZE = 70
MAX_NUM_SEQS = 4
LIMITS = StepLimits(
    max_num_seqs=MAX_NUM_SEQS, max_num_tokens=80, max_blocks=6, block_size=BLOCK_SIZE, vocab_size=VOCAB_SIZE
)
PARAMS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.5, "top_k": 3, "top_p": 0.8, "min_p": 0.1},
    {"temperature": 1.0, "repetition_penalty": 1.5, "frequency_penalty": 0.3},
    {"temperature": 1.0, "presence_penalty": 0.5, "allowed_token_ids": [1, 33, 69]},
    {"temperature": 0.0, "logit_bias": {5: 1.5, 9: -2.0}, "min_tokens": 3},
]


@dataclasses.dataclass
class Then:
    """How things were when a step was staged. known: every sequence's tokens, those on the device among them."""

    pairs: list[tuple[Sequence, int]]
    known: dict[Sequence, list[int]]
    tables: list[list[int]]
    tokens: list[int]


class Model:
    """Sequences that run on rows of a builder; the tokens that they sample are drawn by the test."""

    def __init__(self, data: st.DataObject) -> None:
        self.data = data
        self.device = LateDevice()
        self.kernels = for_device(torch.device("cpu"))
        self.builder = StepBuilder(self.device, self.kernels, LIMITS)
        self.running: list[Sequence | None] = [None] * MAX_NUM_SEQS
        self.next_block = 1
        # (sequence, token) that the device has and the host has not.
        self.unknown: list[tuple[Sequence, int]] = []

    def draw(self, strategy: st.SearchStrategy[Any]) -> Any:
        return self.data.draw(strategy)

    def arrive(self, row: int) -> None:
        params = self.draw(st.sampled_from(PARAMS))
        prompt = self.draw(st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=40))
        self.running[row] = make_sequence(prompt, row, SamplingParams(max_tokens=None, **params), seed=row * 2**40 - 7)

    def preempt(self, row: int) -> None:
        """Its blocks are gone and its row may be another's; what it has sampled is known by the time it comes back."""
        self.tell()
        sequence = self.running[row]
        other = self.draw(st.integers(0, MAX_NUM_SEQS - 1))
        self.running[row], self.running[other] = self.running[other], sequence
        for place, moved in enumerate(self.running):
            if moved is not None and (moved is sequence or moved.row != place):
                moved.row, moved.block_ids, moved.num_computed_tokens = place, [], 0

    def tell(self) -> None:
        for sequence, token in self.unknown:
            sequence.token_ids.append(token)
            sequence.num_pending_tokens = 0
        self.unknown = []

    def step(self) -> None:
        chosen = [s for s in self.running if s is not None and s.num_tokens < 90]
        chosen = [s for s in chosen if self.draw(st.integers(0, 3))]
        pairs = []
        for sequence in chosen:
            lacking = sequence.num_uncomputed_tokens
            count = lacking if lacking == 1 or self.draw(st.booleans()) else self.draw(st.integers(1, lacking))
            count = min(count, 20)
            while len(sequence.block_ids) * BLOCK_SIZE < sequence.num_computed_tokens + count:
                sequence.block_ids.append(self.next_block)
                self.next_block += 1
            pairs.append((sequence, count))
        if not pairs:
            return
        bucket = self.draw(st.sampled_from([None, MAX_NUM_SEQS]))
        step = self.builder.stage(SchedulerOutput(tuple(pairs)), lambda num_seqs: bucket)
        known = {sequence: list(sequence.token_ids) for sequence, _ in pairs}
        for sequence, token in self.unknown:
            known.setdefault(sequence, list(sequence.token_ids)).append(token)
        tables = [list(sequence.block_ids) for sequence, _ in pairs]
        tokens = [self.draw(st.integers(0, VOCAB_SIZE - 1)) for _ in step.sampled]
        then = Then(pairs, known, tables, tokens)
        pending = self.builder.staging.submit(lambda: self.compute(step, then))
        sampled = [pairs[index][0] for index in step.sampled]
        assert sampled == [s for s, n in pairs if s.num_computed_tokens + n == s.num_tokens]
        for sequence, count in pairs:
            sequence.num_computed_tokens += count
        self.tell()
        self.unknown = list(zip(sampled, tokens, strict=True))
        for sequence in sampled:
            sequence.num_pending_tokens = 1
        # The host goes on before the device has come to it.
        if self.draw(st.booleans()):
            pending.wait()

    def compute(self, step: StagedStep, then: "Then") -> tuple[torch.Tensor, ...]:
        """Check what the step sees. The sequences have moved on by now."""
        builder = self.builder
        pairs, known, tokens = then.pairs, then.known, then.tokens
        batch = builder.expand(builder.receive(step), step.sizes)
        positions, ids, slots = [], [], []
        starts, lens = step_starts(pairs), batch.attention.seq_lens.tolist()
        for i, (sequence, count) in enumerate(pairs):
            end = lens[i]
            positions += range(end - count, end)
            ids += known[sequence][end - count : end]
            table = batch.attention.block_table[i].tolist()
            assert table[: -(-end // BLOCK_SIZE)] == then.tables[i][: -(-end // BLOCK_SIZE)]
            slots += [table[p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE for p in range(end - count, end)]
        num_padding = step.sizes.num_seqs - len(pairs)
        assert batch.positions.tolist() == positions + [0] * num_padding
        assert batch.input_ids.tolist()[: len(ids)] == ids
        assert batch.attention.slot_mapping.tolist() == slots + [-1] * num_padding
        assert batch.attention.query_start_loc.tolist()[: len(starts)] == starts
        self.check_sampling(step, batch, [pairs[index][0] for index in step.sampled], known)
        drawn = torch.tensor(tokens, dtype=torch.int64)
        self.kernels.write_words(builder.rows.state.last_tokens, batch.sample_rows[: len(tokens)], drawn)
        if step.has_edits:
            edits = builder.edits(step)
            self.kernels.count_tokens(edits.counts, edits.count_slot, drawn)
        return ()

    def check_sampling(
        self, step: StagedStep, batch: InputBatch, sampled: list[Sequence], known: dict[Sequence, list[int]]
    ) -> None:
        builder, inputs = self.builder, self.builder.inputs
        ends = batch.attention.query_start_loc.tolist()[1:]
        assert batch.logits_indices.tolist()[: len(sampled)] == [ends[index] - 1 for index in step.sampled]
        assert step.has_edits == any(TokenRules.are_needed(s) for s in sampled)
        assert step.all_greedy == all(s.request.params.temperature == 0 for s in sampled)
        for place, sequence in enumerate(sampled):
            params = sequence.request.params
            values = (inputs.temperature, inputs.top_p, inputs.min_p, inputs.top_k)
            expected = (params.temperature, params.top_p, params.min_p, params.top_k)
            assert [float(value[place]) for value in values] == pytest.approx(expected)
            assert int(inputs.seeds[place]) % 2**64 == sequence.seed
            assert int(inputs.sample_positions[place]) == len(known[sequence])
            row = int(inputs.count_slot[place])
            assert (row >= 0) == params.has_penalties
            if row >= 0:
                self.check_counts(builder.rows.state.counts[row].tolist(), sequence, known[sequence])
            mask = int(inputs.mask_row[place])
            assert (mask >= 0) == (params.allowed_token_ids is not None)
            if mask >= 0:
                words = builder.rows.state.masks[mask].tolist()
                allowed = [t for t in range(VOCAB_SIZE) if words[t // 32] >> (t % 32) & 1]
                assert allowed == list(params.allowed_token_ids or ())

    def check_counts(self, counts: list[int], sequence: Sequence, tokens: list[int]) -> None:
        prompt, output = tokens[: sequence.num_prompt_tokens], tokens[sequence.num_prompt_tokens :]
        counts_prompt = sequence.request.params.repetition_penalty != 1.0
        for token in range(VOCAB_SIZE):
            expected = 2 * output.count(token) + (1 if counts_prompt and token in prompt else 0)
            assert counts[token] == expected


def step_starts(pairs: list[tuple[Sequence, int]]) -> list[int]:
    starts = [0]
    for _, count in pairs:
        starts.append(starts[-1] + count)
    return starts


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.data())
def test_a_step_is_what_its_sequences_say(data: st.DataObject) -> None:
    model = Model(data)
    for _ in range(data.draw(st.integers(1, 14))):
        row = data.draw(st.integers(0, MAX_NUM_SEQS - 1))
        if model.running[row] is None or data.draw(st.integers(0, 4)) == 0:
            if model.unknown:
                model.tell()
            model.arrive(row)
        elif data.draw(st.integers(0, 5)) == 0:
            model.preempt(row)
        model.step()
    model.device.recover()


def test_a_packet_keeps_what_does_not_fit_its_buffer() -> None:
    device = LateDevice()
    staging = Staging(device, 64)
    packet = staging.open()
    parts = [packet.put([7, 8, 9]), packet.put(range(100)), packet.put(torch.tensor([1.5, -2.0]).numpy())]
    found: list[list[int]] = []

    def work() -> tuple[torch.Tensor, ...]:
        packet.send()
        found.extend(packet.on_device(part).tolist() for part in parts)
        return ()

    staging.submit(work).wait()
    assert found[:2] == [[7, 8, 9], list(range(100))]
    assert torch.tensor(found[2], dtype=torch.int32).view(torch.float32).tolist() == [1.5, -2.0]
    assert all(part.start % 32 == 0 for part in parts)


def test_a_buffer_is_not_written_while_the_device_may_read_it() -> None:
    device = LateDevice()
    staging = Staging(device, 32)
    found = []
    for value in range(5):
        packet = staging.open()
        part = packet.put([value])

        def work(packet: Any = packet, part: Any = part) -> tuple[torch.Tensor, ...]:
            packet.send()
            found.append(packet.on_device(part).tolist())
            return ()

        staging.submit(work)
    assert len(device.waiting) == 2, "two buffers let the host be two steps ahead"
    device.recover()
    assert found == [[0], [1], [2], [3], [4]]
