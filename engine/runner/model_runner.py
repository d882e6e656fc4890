"""`ModelRunner`: computes one step of the schedule and samples from it.

Knows the model, its cache and the rows of running sequences. Must not know why the scheduler chose this step.
"""

import dataclasses
import math

import numpy as np
import torch
from torch import Tensor

from engine.api import GenerateRequest, SamplingParams
from engine.layers import KVCache, ModelConfig
from engine.models import Model
from engine.runner import logprobs
from engine.runner.batch import BatchBuilder, BlockTables
from engine.runner.logprobs import LogprobRows, PendingLogprobs
from engine.sampling import SamplingBatch, SamplingState
from engine.sequence import SampledTokens, SchedulerOutput, Sequence
from kernels import Kernels

NULL_BLOCK = 0
_WARM_UP_TOKENS = 64


@dataclasses.dataclass(frozen=True, slots=True)
class PendingStep:
    """A step under way. tokens: int64, one per sampled row; indices: the scheduled pair of each row."""

    num_scheduled: int
    indices: tuple[int, ...]
    tokens: Tensor
    logprobs: PendingLogprobs | None = None
    prompt_logprobs: PendingLogprobs | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunnerLimits:
    """What is fixed at start. num_blocks counts block 0, the null block, which no sequence ever owns.

    eos_token_ids: what min_tokens bans, besides a request's own stop ids.
    """

    num_blocks: int
    block_size: int
    max_num_seqs: int
    max_model_len: int
    eos_token_ids: tuple[int, ...] = ()


def bytes_per_block(kernels: Kernels, config: ModelConfig, block_size: int, dtype: torch.dtype) -> int:
    """Bytes of one block in the K and V caches of all layers."""
    shapes = kernels.kv_cache_shapes(1, block_size, config.num_kv_heads, config.head_dim)
    return config.num_layers * sum(map(math.prod, shapes)) * dtype.itemsize


def _untouched_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros whose pages cost neither time nor memory until a block is first written.

    They must be zeros, since a masked key of NaN would still spoil its row: 0 * NaN is NaN. torch.zeros writes them
    all, which takes seconds and the whole of the cache's memory at start; numpy asks the system for pages of zeros.
    """
    num_bytes = math.prod(shape) * dtype.itemsize
    return torch.from_numpy(np.zeros(num_bytes, dtype=np.uint8)).view(dtype).view(shape)


class ModelRunner:
    """A model and the state of its running sequences on the device. Not for two threads at once.

    Block 0 is the null block: padding points at it, so the scheduler never hands it out. A sequence's `row` must be
    below max_num_seqs and its own for as long as it runs.
    """

    def __init__(
        self, model: Model, kernels: Kernels, config: ModelConfig, dtype: torch.dtype, limits: RunnerLimits
    ) -> None:
        self.num_blocks = limits.num_blocks
        self.max_model_len = limits.max_model_len
        self._model = model
        self._kernels = kernels
        self._builder = BatchBuilder(
            BlockTables(limits.max_num_seqs, -(-limits.max_model_len // limits.block_size)),
            SamplingState(limits.max_num_seqs, config.vocab_size, limits.eos_token_ids),
            limits.block_size,
        )
        self._block_size = limits.block_size
        shapes = kernels.kv_cache_shapes(limits.num_blocks, limits.block_size, config.num_kv_heads, config.head_dim)
        self._kv_cache: KVCache = [
            (_untouched_zeros(shapes[0], dtype), _untouched_zeros(shapes[1], dtype)) for _ in range(config.num_layers)
        ]

    @torch.inference_mode()
    def launch(self, output: SchedulerOutput) -> PendingStep:
        """Start computing a step. The sequences' lists may change once this returns; their K/V is then in the cache."""
        if not output.scheduled:
            return PendingStep(0, (), torch.empty(0, dtype=torch.int64))
        batch = self._builder.build(output)
        hidden = self._model.forward(batch.input_ids, batch.positions, self._kv_cache, batch.attention)
        num_scheduled, indices = len(output.scheduled), batch.sampling.indices
        prompt = None
        if batch.prompt_logprobs is not None:
            prompt = self._prompt_logprobs(hidden, batch.prompt_logprobs)
        if not indices:
            return PendingStep(num_scheduled, (), torch.empty(0, dtype=torch.int64), prompt_logprobs=prompt)
        if len(indices) < hidden.shape[0]:
            hidden = hidden.index_select(0, batch.logits_indices)
        logits = self._model.compute_logits(hidden)
        tokens = self._kernels.sample(logits, batch.sampling.tensors)
        return PendingStep(num_scheduled, indices, tokens, self._logprobs(logits, tokens, batch.sampling), prompt)

    def _prompt_logprobs(self, hidden: Tensor, rows: LogprobRows) -> PendingLogprobs:
        """Of prompt tokens, from the step's hidden states; their logits are never there all at once."""
        return logprobs.compute(
            rows, lambda indices: self._model.compute_logits(hidden.index_select(0, indices)), self._kernels
        )

    def _logprobs(self, logits: Tensor, tokens: Tensor, sampling: SamplingBatch) -> PendingLogprobs | None:
        """Of the new tokens, where asked for."""
        if not sampling.logprobs:
            return None
        indices = torch.tensor([row for row, _ in sampling.logprobs])
        pairs = tuple((sampling.indices[row], 1, num_top) for row, num_top in sampling.logprobs)
        rows = LogprobRows(indices, tokens.index_select(0, indices), pairs)
        return logprobs.compute(rows, lambda part: logits.index_select(0, part), self._kernels)

    def collect(self, pending: PendingStep) -> SampledTokens:
        """Wait for a step and return what it sampled, in the order of the schedule."""
        token_ids: list[list[int]] = [[] for _ in range(pending.num_scheduled)]
        for index, token in zip(pending.indices, pending.tokens.tolist(), strict=True):
            token_ids[index].append(token)
        new, prompt = (
            () if part is None else part.collect(pending.num_scheduled)
            for part in (pending.logprobs, pending.prompt_logprobs)
        )
        return SampledTokens(token_ids, new, prompt)

    def warm_up(self) -> None:
        """Run a small prefill and a sampled decode by the ordinary path, so that the first request finds all set up.

        The sequence lives in the null block, so nothing that it writes is ever read.
        """
        num_tokens = max(1, min(_WARM_UP_TOKENS, self.max_model_len - 1))
        params = SamplingParams(temperature=1.0, top_p=0.9, seed=0)
        request = GenerateRequest(request_id=0, prompt_token_ids=[0] * num_tokens, params=params, deadline=0.0)
        sequence = Sequence.from_request(request, client_id=0, index=0, base_seed=0)
        sequence.row = 0
        sequence.block_ids = [NULL_BLOCK] * -(-(num_tokens + 1) // self._block_size)
        for num_scheduled in (num_tokens, 1):
            sampled = self.collect(self.launch(SchedulerOutput(((sequence, num_scheduled),))))
            sequence.num_computed_tokens += num_scheduled
            sequence.token_ids.extend(sampled.token_ids[0])
