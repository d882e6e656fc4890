"""`ModelRunner`: computes one step of the schedule and samples from it.

`launch` is the host's half of a step and returns when the device has all it needs; `collect` waits for the tokens.
Knows the model, its cache and the rows of running sequences. Must not know why the scheduler chose this step.
"""

import dataclasses
import functools
import math

import torch
from torch import Tensor

from engine.api import GenerateRequest, SamplingParams
from engine.layers import KVCache, ModelConfig
from engine.models import Model
from engine.runner.batch import InputBatch, StagedStep, StepBuilder, StepLimits, StepSizes
from engine.runner.device import Device, Pending
from engine.runner.graphs import DecodeGraphs, bucket_sizes
from engine.runner.logprobs import LogprobRows, num_tensors
from engine.runner.rows import zeros
from engine.sequence import SampledTokens, SchedulerOutput, Sequence
from engine.token_rules import TokenRules
from kernels import Kernels, SamplingTensors

NULL_BLOCK = 0
_WARM_UP_TOKENS = 64


@dataclasses.dataclass(frozen=True, slots=True)
class PendingStep:
    """A step under way. indices: the scheduled pair of each sampled row; results: tokens, then log-probabilities."""

    num_scheduled: int
    indices: list[int]
    results: Pending | None
    logprobs: LogprobRows | None = None
    prompt_logprobs: LogprobRows | None = None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunnerLimits:
    """What is fixed at start. num_blocks counts block 0, the null block, which no sequence ever owns.

    eos_token_ids: what min_tokens bans, besides a request's own stop ids.
    """

    num_blocks: int
    block_size: int
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    eos_token_ids: tuple[int, ...] = ()


def bytes_per_block(kernels: Kernels, config: ModelConfig, block_size: int, dtype: torch.dtype) -> int:
    """Bytes of one block in the K and V caches of all layers."""
    shapes = kernels.kv_cache_shapes(1, block_size, config.num_kv_heads, config.head_dim)
    return config.num_layers * sum(map(math.prod, shapes)) * dtype.itemsize


@dataclasses.dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is ready to compute: its weights on the device, in `dtype`."""

    model: Model
    kernels: Kernels
    config: ModelConfig
    dtype: torch.dtype


class ModelRunner:
    """A model and the state of its running sequences on the device. For one thread.

    Block 0 is the null block: padding points at it, so the scheduler never hands it out. A sequence's `row` must be
    below max_num_seqs and its own for as long as it runs.
    """

    def __init__(self, loaded: LoadedModel, device: Device, limits: RunnerLimits) -> None:
        self.device_type = device.torch_device.type
        self.limits = limits
        self._device = device
        self._loaded = loaded
        self._model = loaded.model
        self._kernels = loaded.kernels
        step_limits = StepLimits(
            max_num_seqs=min(limits.max_num_seqs, limits.max_num_batched_tokens),
            max_num_tokens=limits.max_num_batched_tokens,
            max_blocks=-(-limits.max_model_len // limits.block_size),
            block_size=limits.block_size,
            vocab_size=loaded.config.vocab_size,
            eos_token_ids=limits.eos_token_ids,
        )
        self._step_limits = step_limits
        self._steps = StepBuilder(device, loaded.kernels, step_limits)
        self._graphs = DecodeGraphs(device)
        self.num_blocks = limits.num_blocks
        self._kv_cache = self._empty_cache()

    def _empty_cache(self) -> KVCache:
        """Zeros, since a masked key of NaN would still spoil its row: 0 * NaN is NaN."""
        limits, config, dtype = self.limits, self._loaded.config, self._loaded.dtype
        shapes = self._kernels.kv_cache_shapes(
            limits.num_blocks, limits.block_size, config.num_kv_heads, config.head_dim
        )

        def cache(shape: tuple[int, ...]) -> Tensor:
            return zeros(self._device, math.prod(shape), dtype).view(shape)

        return [(cache(shapes[0]), cache(shapes[1])) for _ in range(config.num_layers)]

    def waits_for_tokens(self, request: GenerateRequest) -> bool:
        """Whether the host must know a sequence's last token before it can say how the next one is sampled."""
        return TokenRules.read_last_token(request)

    @torch.inference_mode()
    def launch(self, output: SchedulerOutput) -> PendingStep:
        """Start computing a step. The sequences' lists may change once this returns."""
        if not output.scheduled:
            return PendingStep(0, [], None)
        step = self._steps.stage(output, self._graphs.bucket_of)
        results = self._steps.staging.submit(functools.partial(self._compute, step))
        return PendingStep(len(output.scheduled), step.sampled, results, step.logprobs, step.prompt_logprobs)

    def collect(self, pending: PendingStep) -> SampledTokens:
        """Wait for a step and return what it sampled, in the order of the schedule."""
        if pending.results is None:
            return SampledTokens([])
        tokens, *others = pending.results.wait()
        token_ids = [[token] for token in tokens.tolist()]
        if len(token_ids) < pending.num_scheduled:
            sampled = dict(zip(pending.indices, token_ids, strict=True))
            token_ids = [sampled.get(index, []) for index in range(pending.num_scheduled)]
        num_new = num_tensors(pending.logprobs)
        new, prompt = (
            () if rows is None else rows.collect(tuple(tensors), pending.num_scheduled)
            for rows, tensors in ((pending.logprobs, others[:num_new]), (pending.prompt_logprobs, others[num_new:]))
        )
        return SampledTokens(token_ids, new, prompt)

    @torch.inference_mode()
    def _compute(self, step: StagedStep) -> tuple[Tensor, ...]:
        """The device's half of a step: tokens int64, then what log-probabilities need.

        Reads nothing of the host's but what is staged, and waits for nothing.
        """
        tables = self._steps.receive(step)
        num_sampled = len(step.sampled)
        if step.is_bucket:
            graph = self._graphs[step.sizes.num_seqs]
            graph.forward.replay()
            if not step.has_edits and step.logprobs is None:
                graph.sample.replay()
                # A copy: the next step's replay writes there, perhaps before the host has read it.
                return (graph.tokens[:num_sampled].clone(),)
            return self._sample(step, graph.hidden[:num_sampled])
        batch = self._steps.expand(tables, step.sizes)
        hidden = self._forward(batch)
        prompt: tuple[Tensor, ...] = ()
        if step.prompt_logprobs is not None:
            # The logits of a long prompt are never there all at once.
            logits_of = functools.partial(self._logits_of, hidden)
            prompt = tuple(step.prompt_logprobs.compute(step.packet, logits_of, None, self._kernels))
        if num_sampled < step.sizes.num_tokens:
            hidden = hidden.index_select(0, batch.logits_indices)
        return (*self._sample(step, hidden), *prompt)

    def _forward(self, batch: InputBatch) -> Tensor:
        return self._model.forward(batch.input_ids, batch.positions, self._kv_cache, batch.attention)

    def _logits_of(self, hidden: Tensor, indices: Tensor) -> Tensor:
        return self._model.compute_logits(hidden.index_select(0, indices))

    def _sample(self, step: StagedStep, hidden: Tensor) -> tuple[Tensor, ...]:
        """From the hidden states of the sampled rows to their tokens, and to log-probabilities where asked for."""
        num_sampled = len(step.sampled)
        if not num_sampled:
            return (torch.empty(0, dtype=torch.int64, device=hidden.device),)
        logits = self._model.compute_logits(hidden)
        edits = self._steps.edits(step) if step.has_edits else None
        tokens = self._choose(logits, self._steps.sampling(num_sampled, all_greedy=step.all_greedy, edits=edits))
        if edits is not None:
            self._kernels.count_tokens(edits.counts, edits.count_slot, tokens)
        if step.logprobs is None:
            return (tokens,)
        logits_of = functools.partial(logits.index_select, 0)
        return (tokens, *step.logprobs.compute(step.packet, logits_of, tokens, self._kernels))

    def _choose(self, logits: Tensor, sampling: SamplingTensors) -> Tensor:
        """Tokens int64 of the sampled rows, which are also what each row's next decode begins with."""
        tokens = self._kernels.sample(logits, sampling)
        rows = self._steps.inputs.sample_rows[: len(tokens)]
        self._kernels.write_words(self._steps.rows.state.last_tokens, rows, tokens)
        return tokens

    @property
    def graph_sizes(self) -> tuple[int, ...]:
        """The sizes of decode steps to record, ascending. None is larger than a step may be."""
        return bucket_sizes(self._step_limits.max_num_seqs)

    @torch.inference_mode()
    def capture(self, sizes: tuple[int, ...] | None = None) -> None:
        """Record the decode step for each of these sizes; None is all of `graph_sizes`.

        The KV cache must be the one to serve with: the recordings hold its address.
        """
        sizes = self.graph_sizes if sizes is None else sizes
        self._graphs.capture(sizes, self._send_padding, self._bucket_forward, self._bucket_sample)

    def _bucket_forward(self, size: int) -> Tensor:
        sizes = StepSizes(
            num_seqs=size,
            num_tokens=size,
            num_sampled=size,
            num_decodes=size,
            max_query_len=1,
            max_seq_len=self.limits.max_model_len,
        )
        return self._forward(self._steps.expand(self._steps.bucket_tables(size), sizes))

    def _bucket_sample(self, size: int, hidden: Tensor) -> Tensor:
        logits = self._model.compute_logits(hidden)
        return self._choose(logits, self._steps.sampling(size, all_greedy=False))

    def _send_padding(self, size: int) -> None:
        packet = self._steps.stage_padding(size)

        def send() -> tuple[Tensor, ...]:
            packet.send()
            return ()

        self._steps.staging.submit(send).wait()

    def warm_up(self) -> None:
        """Run small steps by the ordinary path, so that the first requests find all set up: kernels, memory, caches.

        A prefill, prompts beside a decode, decodes; plain, and with everything that a request may ask of its logits.
        The sequences live in the null block and in rows of their own, so nothing that they write is ever read.
        """
        num_tokens = max(1, min(_WARM_UP_TOKENS, self.limits.max_model_len - 4, self.limits.max_num_batched_tokens - 1))
        plain = SamplingParams(temperature=1.0, top_p=0.9, seed=0)
        everything = SamplingParams(
            temperature=1.0,
            seed=0,
            repetition_penalty=1.1,
            logit_bias={0: 1.0},
            allowed_token_ids=(0,),
            logprobs=1,
            prompt_logprobs=1,
        )
        rows = self._steps.rows.spare_rows
        first = self._null_sequence(plain, num_tokens, rows[0])
        second = self._null_sequence(everything, num_tokens, rows[1])
        both = [first, second] if self._step_limits.max_num_seqs > 1 else [second]
        for sequences in ([first], [first], both, both):
            self._run_once(sequences)

    def profile(self) -> None:
        """Run the step that takes the most memory: as many tokens, and as many sampled rows, as a step may have.

        Then a decode of as many sequences: where none is recorded, its form of the kernels must be loaded all the same.
        """
        limits = self._step_limits
        num_seqs = min(limits.max_num_seqs, limits.max_num_tokens)
        length = max(1, min(limits.max_num_tokens // num_seqs, self.limits.max_model_len - 1))
        params = SamplingParams(temperature=1.0, top_p=0.9, seed=0)
        sequences = [self._null_sequence(params, length, row) for row in range(num_seqs)]
        self._run_once(sequences)
        self._run_once(sequences)

    def _null_sequence(self, params: SamplingParams, num_tokens: int, row: int) -> Sequence:
        request = GenerateRequest(request_id=0, prompt_token_ids=[0] * num_tokens, params=params, deadline=0.0)
        sequence = Sequence.from_request(request, client_id=0, index=0, base_seed=0)
        sequence.row = row
        num_blocks = -(-(num_tokens + 3) // self.limits.block_size)
        sequence.block_ids = [NULL_BLOCK] * min(num_blocks, self._step_limits.max_blocks)
        return sequence

    def _run_once(self, sequences: list[Sequence]) -> None:
        """One step of all that each of these sequences lacks, and nobody else's."""
        scheduled = tuple((sequence, sequence.num_uncomputed_tokens) for sequence in sequences)
        sampled = self.collect(self.launch(SchedulerOutput(scheduled)))
        for (sequence, num_tokens), token_ids in zip(scheduled, sampled.token_ids, strict=True):
            sequence.num_computed_tokens += num_tokens
            sequence.token_ids.extend(token_ids)

    def recover(self) -> None:
        """After a step has failed: see whether the device can still be used. Raises if it cannot."""
        self._device.recover()
        self.warm_up()
