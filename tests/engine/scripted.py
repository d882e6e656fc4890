"""A runner without a model: every token follows from its sequence alone, so that tests know what must come out."""

import dataclasses
import time
from collections.abc import Sequence as SequenceABC

from engine.api import EngineConfig, GenerateRequest, ModelInfo, SamplingParams
from engine.kv_cache import NULL_BLOCK_ID
from engine.sequence import SampledTokens, SchedulerOutput, Sequence

VOCAB_SIZE = 1000
EOS = 7


def _next_token(token_ids: SequenceABC[int], index: int) -> int:
    return (token_ids[-1] * 31 + len(token_ids) * 17 + index * 7) % (VOCAB_SIZE - 10) + 10


@dataclasses.dataclass(frozen=True)
class ScriptedStep:
    """What a launched step has computed. slots: where it wrote, each a block's contents and a place in it."""

    sampled: SampledTokens
    slots: list[tuple[list[int | None], int]]


class ScriptedRunner:
    """Checks what every runner may rely on, and answers with a function of a sequence's tokens and its index.

    It computes at the launch, as a device does that runs its steps in order: a token sampled there is known to it, by
    row, and to nobody else until the step is collected. A row has state only for the sequence that it was last for.

    contents: what the cache would hold, per block one entry per slot: the hash of the token there and all before it
    (with the salt), or None where nobody has written or a failed step may have. K/V follows from exactly that, so a
    sequence whose blocks hold other entries than its own history would compute nonsense.
    max_in_flight: how many steps may be launched and not collected.
    """

    device_type = "cpu"

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_in_flight: int = 1,
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.max_in_flight = max_in_flight
        self.fail_next = False
        self.fail_next_collect = False
        self.contents: list[list[int | None]] = [[None] * block_size for _ in range(num_blocks)]
        self.in_flight: list[ScriptedStep] = []
        self._rows: dict[int, tuple[Sequence, int, int]] = {}  # the last one sampled: whose, at which position, which
        self._histories: dict[Sequence, list[int]] = {}
        self._ends: dict[Sequence, int] = {}
        self.is_broken = False
        self.delay_s = 0.0
        self.num_steps = 0
        self.num_scheduled_tokens = 0

    def waits_for_tokens(self, request: GenerateRequest) -> bool:
        return any(len(word) > 1 for word in request.bad_words_ids)

    def launch(self, output: SchedulerOutput) -> ScriptedStep:
        assert len(self.in_flight) < self.max_in_flight
        self.num_steps += 1
        self.num_scheduled_tokens += output.num_batched_tokens
        self._check(output)
        slots = self._write(output)
        if self.fail_next:
            self.fail_next = False
            _spoil(slots)
            raise RuntimeError("scripted failure")
        # All of a step's K/V is written before any of it is read.
        for sequence, num_tokens in output.scheduled:
            self.check_contents(sequence, sequence.num_computed_tokens + num_tokens)
        step = ScriptedStep(self.sample(output), slots)
        for (sequence, _), token_ids in zip(output.scheduled, step.sampled.token_ids, strict=True):
            if token_ids:
                self._rows[sequence.row] = (sequence, sequence.num_tokens, token_ids[0])
        self.in_flight.append(step)
        return step

    def sample(self, output: SchedulerOutput) -> SampledTokens:
        """What the step samples, from the state that it finds at its launch."""
        return SampledTokens(
            [
                [_next_token(self.tokens(sequence), sequence.index)]
                if num_tokens == sequence.num_uncomputed_tokens
                else []
                for sequence, num_tokens in output.scheduled
            ]
        )

    def collect(self, pending: ScriptedStep) -> SampledTokens:
        time.sleep(self.delay_s)
        if self.fail_next_collect:
            self.fail_next_collect = False
            for step in self.in_flight:  # what the device computed from a broken step is broken
                _spoil(step.slots)
            self.in_flight.clear()
            raise RuntimeError("scripted failure")
        assert self.in_flight.pop(0) is pending, "steps are collected in the order of their launches"
        return pending.sampled

    def recover(self) -> None:
        if self.is_broken:
            raise RuntimeError("scripted: the device is gone")

    def tokens(self, sequence: Sequence) -> list[int]:
        """All tokens of a sequence, the pending one from its row."""
        if not sequence.num_pending_tokens:
            return sequence.token_ids
        owner, position, token_id = self._rows[sequence.row]
        assert sequence.num_pending_tokens == 1 and owner is sequence and position == len(sequence.token_ids)
        return [*sequence.token_ids, token_id]

    def _check(self, output: SchedulerOutput) -> None:
        assert 0 < output.num_batched_tokens <= self.max_num_batched_tokens
        rows = [sequence.row for sequence, _ in output.scheduled]
        assert len(set(rows)) == len(rows) <= self.max_num_seqs
        assert all(0 <= row < self.max_num_seqs for row in rows)
        slots: list[int] = []
        for sequence, num_tokens in output.scheduled:
            assert 0 < num_tokens <= sequence.num_uncomputed_tokens
            assert sequence.num_tokens < sequence.max_num_tokens, "a step whose tokens nobody will want"
            assert not (sequence.num_pending_tokens and self.waits_for_tokens(sequence.request))
            assert len(self.in_flight) or not sequence.num_pending_tokens
            first = sequence.num_computed_tokens
            if sequence.request.params.prompt_logprobs is not None:
                assert first in (0, self._ends.get(sequence, 0)), "a position whose logits are wanted was skipped"
            self._ends[sequence] = first + num_tokens
            for position in range(first, first + num_tokens):
                block_id = sequence.block_ids[position // self.block_size]
                assert NULL_BLOCK_ID < block_id < self.num_blocks
                slots.append(block_id * self.block_size + position % self.block_size)
        assert len(set(slots)) == len(slots), "two tokens of one step share a slot"

    def check_contents(self, sequence: Sequence, num_tokens: int) -> None:
        """The cache holds the sequence's own K/V for its first `num_tokens` tokens."""
        history = self._history(sequence)
        for start in range(0, num_tokens, self.block_size):
            own = history[start : min(start + self.block_size, num_tokens)]
            block = self.contents[sequence.block_ids[start // self.block_size]]
            assert block[: len(own)] == own, "a block does not hold what its sequence counts as computed"

    def _history(self, sequence: Sequence) -> list[int]:
        history = self._histories.setdefault(sequence, [])
        if len(history) < sequence.num_tokens:
            for token_id in self.tokens(sequence)[len(history) :]:
                history.append(hash((history[-1] if history else sequence.request.cache_salt, token_id)))
        return history

    def _write(self, output: SchedulerOutput) -> list[tuple[list[int | None], int]]:
        slots = []
        for sequence, num_tokens in output.scheduled:
            history = self._history(sequence)
            for position in range(sequence.num_computed_tokens, sequence.num_computed_tokens + num_tokens):
                block = self.contents[sequence.block_ids[position // self.block_size]]
                slots.append((block, position % self.block_size))
                block[position % self.block_size] = history[position]
        return slots


def _spoil(slots: list[tuple[list[int | None], int]]) -> None:
    for block, offset in slots:
        block[offset] = None


def model_info(max_model_len: int = 256) -> ModelInfo:
    return ModelInfo(
        served_name="scripted",
        model_dir="/nowhere",
        created_s=0,
        vocab_size=VOCAB_SIZE,
        max_model_len=max_model_len,
        eos_token_ids=(EOS,),
    )


def runner_for(config: EngineConfig, num_blocks: int, kind: type[ScriptedRunner] = ScriptedRunner) -> ScriptedRunner:
    config = config.for_device(kind.device_type)
    assert config.max_num_seqs is not None and config.max_num_batched_tokens is not None
    return kind(
        num_blocks,
        config.block_size,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_in_flight=2 if config.async_scheduling else 1,
    )


def request(
    request_id: int,
    prompt: list[int],
    *,
    priority: int = 0,
    cache_salt: str = "",
    session_id: str = "",
    deadline: float = float("inf"),
    bad_words_ids: tuple[tuple[int, ...], ...] = (),
    **params: object,
) -> GenerateRequest:
    return GenerateRequest(
        request_id=request_id,
        prompt_token_ids=prompt,
        params=SamplingParams(**params),  # type: ignore[arg-type]
        deadline=deadline,
        priority=priority,
        cache_salt=cache_salt,
        session_id=session_id,
        bad_words_ids=bad_words_ids,
    )


def expected_tokens(prompt: list[int], max_tokens: int, index: int = 0) -> list[int]:
    """What the scripted runner generates for `prompt`, computed without an engine."""
    tokens = list(prompt)
    for _ in range(max_tokens):
        tokens.append(_next_token(tokens, index))
    return tokens[len(prompt) :]
