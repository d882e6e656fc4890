"""A scheduler small enough to be seen through, to drive a runner: whole or chunked prompts, scrambled blocks."""

import itertools
import random
from collections.abc import Iterable
from pathlib import Path

import torch

from engine.api import EngineConfig, GenerateRequest, SamplingParams
from engine.loading import read_model_config
from engine.runner import ModelRunner
from engine.runner.start import load_model
from engine.sequence import SchedulerOutput, Sequence
from kernels import AttentionMetadata, KernelOptions, for_device

# Where "auto" runs a model: pytest's --device says what it finds.
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
GREEDY = SamplingParams(temperature=0.0, max_tokens=None)


def make_sequence(prompt: Iterable[int], row: int = 0, params: SamplingParams = GREEDY, seed: int = 0) -> Sequence:
    request = GenerateRequest(request_id=row, prompt_token_ids=list(prompt), params=params, deadline=0.0)
    sequence = Sequence.from_request(request, client_id=0, index=0, base_seed=seed)
    sequence.row = row
    return sequence


class Driver:
    """Runs steps: every sequence gets what it lacks, as far as the token budget goes. Blocks come at random."""

    def __init__(self, runner: ModelRunner, block_size: int, budget: int = 10**6) -> None:
        self.runner = runner
        self.block_size = block_size
        self.budget = budget
        self.free = list(range(1, runner.num_blocks))
        random.Random(0).shuffle(self.free)

    def step(self, sequences: Iterable[Sequence]) -> dict[Sequence, list[int]]:
        left = self.budget
        scheduled: list[tuple[Sequence, int]] = []
        for sequence in sequences:
            num_tokens = min(left, sequence.num_uncomputed_tokens)
            if num_tokens:
                left -= num_tokens
                end = sequence.num_computed_tokens + num_tokens
                while len(sequence.block_ids) * self.block_size < end:
                    sequence.block_ids.append(self.free.pop())
                scheduled.append((sequence, num_tokens))
        sampled = self.runner.collect(self.runner.launch(SchedulerOutput(tuple(scheduled))))
        assert len(sampled.token_ids) == len(scheduled)
        result = {}
        for (sequence, num_tokens), token_ids in zip(scheduled, sampled.token_ids, strict=True):
            sequence.num_computed_tokens += num_tokens
            assert len(token_ids) == (sequence.num_computed_tokens == sequence.num_tokens)
            sequence.token_ids.extend(token_ids)
            result[sequence] = list(token_ids)
        return result

    def release(self, sequence: Sequence) -> None:
        self.free.extend(sequence.block_ids)
        sequence.block_ids = []
        sequence.num_computed_tokens = 0

    def generate(self, sequences: list[Sequence], num_tokens: int) -> list[list[int]]:
        """Step until each sequence has `num_tokens` of output, and free their blocks."""
        while running := [s for s in sequences if s.num_output_tokens < num_tokens]:
            self.step(running)
        for sequence in sequences:
            self.release(sequence)
        return [s.token_ids[s.num_prompt_tokens :] for s in sequences]


class PromptLogits:
    """Logits of every token of a prompt, from the model itself: no runner, no scheduler."""

    def __init__(self, directory: Path, dtype: torch.dtype, options: KernelOptions | None = None) -> None:
        self._config = read_model_config(directory)
        self._dtype = dtype
        self._kernels = for_device(DEVICE, dtype, options)
        config = EngineConfig(model=str(directory))
        self._model = load_model(config, self._config, self._kernels, dtype, DEVICE).model

    @torch.inference_mode()
    def __call__(self, prompt: list[int], block_size: int = 16, cuts: tuple[int, ...] = ()) -> torch.Tensor:
        """[len(prompt), vocab_size] on the CPU, computed at once, or chunk by chunk between the `cuts`."""
        config, num_tokens = self._config, len(prompt)
        num_blocks = -(-num_tokens // block_size)
        shapes = self._kernels.kv_cache_shapes(num_blocks + 1, block_size, config.num_kv_heads, config.head_dim)
        cache = [
            (
                torch.zeros(shapes[0], dtype=self._dtype, device=DEVICE),
                torch.zeros(shapes[1], dtype=self._dtype, device=DEVICE),
            )
            for _ in range(config.num_layers)
        ]
        logits = []
        for start, end in itertools.pairwise(cuts or (0, num_tokens)):
            metadata = AttentionMetadata(
                slot_mapping=torch.arange(block_size + start, block_size + end, device=DEVICE),
                query_start_loc=torch.tensor([0, end - start], dtype=torch.int32, device=DEVICE),
                seq_lens=torch.tensor([end], dtype=torch.int32, device=DEVICE),
                block_table=torch.arange(1, num_blocks + 1, dtype=torch.int32, device=DEVICE)[None],
                max_query_len=end - start,
                max_seq_len=end,
            )
            ids = torch.tensor(prompt[start:end], device=DEVICE)
            hidden = self._model.forward(ids, torch.arange(start, end, device=DEVICE), cache, metadata)
            logits.append(self._model.compute_logits(hidden).cpu())
        return torch.cat(logits)
