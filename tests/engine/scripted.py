"""A runner without a model: every token follows from its sequence alone, so that tests know what must come out."""

import time

from engine.api import EngineConfig, GenerateRequest, ModelInfo, SamplingParams
from engine.kv_cache import NULL_BLOCK_ID
from engine.sequence import SampledTokens, SchedulerOutput, Sequence

VOCAB_SIZE = 1000
EOS = 7


def scripted_token(sequence: Sequence) -> int:
    """The token after `sequence`: a function of its last token and its length alone."""
    return (sequence.token_ids[-1] * 31 + sequence.num_tokens * 17) % (VOCAB_SIZE - 10) + 10


class ScriptedRunner:
    """Checks what every runner may rely on, and answers with `scripted_token`."""

    def __init__(self, num_blocks: int, block_size: int, *, max_num_seqs: int, max_num_batched_tokens: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.fail_next = False
        self.is_broken = False
        self.delay_s = 0.0
        self.num_steps = 0

    def launch(self, output: SchedulerOutput) -> SchedulerOutput:
        self.num_steps += 1
        if self.fail_next:
            self.fail_next = False
            raise RuntimeError("scripted failure")
        self._check(output)
        return output

    def collect(self, pending: SchedulerOutput) -> SampledTokens:
        time.sleep(self.delay_s)
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
            for position in range(first, first + num_tokens):
                block_id = sequence.block_ids[position // self.block_size]
                assert NULL_BLOCK_ID < block_id < self.num_blocks
                slots.append(block_id * self.block_size + position % self.block_size)
        assert len(set(slots)) == len(slots), "two tokens of one step share a slot"


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


def request(request_id: int, prompt: list[int], **params: object) -> GenerateRequest:
    return GenerateRequest(
        request_id=request_id,
        prompt_token_ids=prompt,
        params=SamplingParams(**params),  # type: ignore[arg-type]
        deadline=float("inf"),
    )


def expected_tokens(prompt: list[int], max_tokens: int) -> list[int]:
    """What the scripted runner generates for `prompt`, computed without an engine."""
    tokens = list(prompt)
    for _ in range(max_tokens):
        tokens.append((tokens[-1] * 31 + len(tokens) * 17) % (VOCAB_SIZE - 10) + 10)
    return tokens[len(prompt) :]
