"""A runner without a model: every token follows from its sequence alone, so that tests know what must come out."""

import time
from collections.abc import Iterator

from engine.api import EngineConfig, GenerateRequest, ModelInfo, SamplingParams
from engine.kv_cache import NULL_BLOCK_ID
from engine.sequence import SampledTokens, SchedulerOutput, Sequence

VOCAB_SIZE = 1000
EOS = 7


def scripted_token(sequence: Sequence) -> int:
    """The token after `sequence`: a function of its last token, its length and which sample it is."""
    return _next_token(sequence.token_ids, sequence.index)


def _next_token(token_ids: list[int], index: int) -> int:
    return (token_ids[-1] * 31 + len(token_ids) * 17 + index * 7) % (VOCAB_SIZE - 10) + 10


class ScriptedRunner:
    """Checks what every runner may rely on, and answers with `scripted_token`.

    contents: what the cache would hold, per block one entry per slot: the hash of the token there and all before it
    (with the salt), or None where nobody has written or a failed step may have. K/V follows from exactly that, so a
    sequence whose blocks hold other entries than its own history would compute nonsense.
    """

    def __init__(self, num_blocks: int, block_size: int, *, max_num_seqs: int, max_num_batched_tokens: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.fail_next = False
        self.fail_next_collect = False
        self.contents: list[list[int | None]] = [[None] * block_size for _ in range(num_blocks)]
        self._histories: dict[Sequence, list[int]] = {}
        self._ends: dict[Sequence, int] = {}
        self.is_broken = False
        self.delay_s = 0.0
        self.num_steps = 0

    def launch(self, output: SchedulerOutput) -> SchedulerOutput:
        self.num_steps += 1
        self._check(output)
        self._write(output)
        if self.fail_next:
            self.fail_next = False
            self._spoil(output)
            raise RuntimeError("scripted failure")
        # All of a step's K/V is written before any of it is read.
        for sequence, num_tokens in output.scheduled:
            self.check_contents(sequence, sequence.num_computed_tokens + num_tokens)
        return output

    def collect(self, pending: SchedulerOutput) -> SampledTokens:
        time.sleep(self.delay_s)
        if self.fail_next_collect:
            self.fail_next_collect = False
            self._spoil(pending)
            raise RuntimeError("scripted failure")
        return SampledTokens(
            [
                [scripted_token(sequence)] if num_tokens == sequence.num_uncomputed_tokens else []
                for sequence, num_tokens in pending.scheduled
            ]
        )

    def warm_up(self) -> None:
        if self.is_broken:
            raise RuntimeError("scripted: the device is gone")

    def _check(self, output: SchedulerOutput) -> None:
        assert 0 < output.num_batched_tokens <= self.max_num_batched_tokens
        rows = [sequence.row for sequence, _ in output.scheduled]
        assert len(set(rows)) == len(rows) <= self.max_num_seqs
        assert all(0 <= row < self.max_num_seqs for row in rows)
        slots: list[int] = []
        for sequence, num_tokens in output.scheduled:
            assert 0 < num_tokens <= sequence.num_uncomputed_tokens
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
        for token_id in sequence.token_ids[len(history) :]:
            history.append(hash((history[-1] if history else sequence.request.cache_salt, token_id)))
        return history

    def _slots(self, output: SchedulerOutput) -> Iterator[tuple[Sequence, int, list[int | None], int]]:
        for sequence, num_tokens in output.scheduled:
            for position in range(sequence.num_computed_tokens, sequence.num_computed_tokens + num_tokens):
                block = self.contents[sequence.block_ids[position // self.block_size]]
                yield sequence, position, block, position % self.block_size

    def _write(self, output: SchedulerOutput) -> None:
        for sequence, position, block, offset in self._slots(output):
            block[offset] = self._history(sequence)[position]

    def _spoil(self, output: SchedulerOutput) -> None:
        for _, _, block, offset in self._slots(output):
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


def runner_for(config: EngineConfig, num_blocks: int) -> ScriptedRunner:
    return ScriptedRunner(
        num_blocks,
        config.block_size,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
    )


def request(
    request_id: int,
    prompt: list[int],
    *,
    priority: int = 0,
    cache_salt: str = "",
    deadline: float = float("inf"),
    **params: object,
) -> GenerateRequest:
    return GenerateRequest(
        request_id=request_id,
        prompt_token_ids=prompt,
        params=SamplingParams(**params),  # type: ignore[arg-type]
        deadline=deadline,
        priority=priority,
        cache_salt=cache_salt,
    )


def expected_tokens(prompt: list[int], max_tokens: int, index: int = 0) -> list[int]:
    """What the scripted runner generates for `prompt`, computed without an engine."""
    tokens = list(prompt)
    for _ in range(max_tokens):
        tokens.append(_next_token(tokens, index))
    return tokens[len(prompt) :]
