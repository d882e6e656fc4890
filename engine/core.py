"""The engine core: requests in, tokens out, one step at a time.

With overlap (`EngineConfig.async_scheduling`) a step is scheduled and launched while the device still computes the one
before it; docs/scheduling.md has the rules. Without, each step is collected before the next one is scheduled.

Knows requests, sequences, the scheduler and a runner. Must not know sockets, threads, clocks or text: the engine
process and the `LLM` class drive it alike, from one thread.
"""

import dataclasses
import itertools
import secrets
from collections import defaultdict
from collections.abc import Callable
from collections.abc import Sequence as SequenceABC
from typing import Any, NamedTuple, Protocol

from engine.api import (
    EngineConfig,
    FinishReason,
    GenerateRequest,
    ModelInfo,
    RequestFailed,
    RequestOutput,
    ServingError,
    TokenLogprobs,
    Usage,
    check_request,
)
from engine.kv_cache import KVCacheManager
from engine.scheduler import Scheduler
from engine.sequence import SampledTokens, SchedulerOutput, Sequence


class Runner(Protocol):
    """What computes steps. `launch` starts one; `collect` waits for it and returns what it sampled.

    Steps are computed, and collected, in the order of their launches; at most two are launched and not collected.
    Between the two the caller may end sequences of a step and hand their blocks and rows out again, since what a later
    step writes there comes later. A step that is never collected, after an error, is forgotten.

    device_type: "cpu" or "cuda", torch's name.
    """

    num_blocks: int
    device_type: str

    def waits_for_tokens(self, request: GenerateRequest) -> bool:
        """Whether the host must know a sequence's last token before it can launch the step that samples the next."""
        ...

    def launch(self, output: SchedulerOutput) -> Any:
        """Start computing the step; returns a handle for `collect`.

        The sequences are as the steps before have left them: `num_computed_tokens` does not count this step, and tokens
        at or past `len(token_ids)` are pending, known to the device alone. A pair samples a token if and only if
        `num_tokens == sequence.num_uncomputed_tokens`. If it raises, earlier steps can be collected all the same.
        """
        ...

    def collect(self, pending: Any) -> SampledTokens:
        """The new tokens of the oldest launched step, one entry per scheduled pair."""
        ...

    def recover(self) -> None:
        """After an error: wait for the device and compute a small batch that touches no sequence's blocks or row.

        A launched step can still be collected. Raises when the device is unusable.
        """
        ...


class ClientFailure(NamedTuple):
    """A request of a client that has failed as a whole."""

    client_id: int
    message: RequestFailed


# By client, in the order of the schedule.
ClientOutputs = dict[int, list[RequestOutput]]


@dataclasses.dataclass(frozen=True, slots=True)
class LaunchedStep:
    """A step that is on the device.

    first_positions: of the tokens of each pair after the decodes; what the sequence counts as computed has moved on.
    handle: the runner's.
    """

    output: SchedulerOutput
    first_positions: list[int]
    handle: Any


def _nothing() -> None:
    pass


class EngineCore:
    """Serves the requests of many clients on one runner. Every sequence ends exactly once."""

    def __init__(self, config: EngineConfig, model: ModelInfo, runner: Runner) -> None:
        config = config.for_device(runner.device_type)
        assert config.max_num_seqs is not None and config.max_num_batched_tokens is not None
        kv_cache = KVCacheManager(
            runner.num_blocks, config.block_size, enable_prefix_caching=config.enable_prefix_caching
        )
        # So whatever `check_request` lets in can run, if need be alone: nothing waits for blocks that never come.
        if kv_cache.num_blocks_for(model.max_model_len) > kv_cache.pool.num_usable_blocks:
            raise ValueError(f"the KV cache does not hold one sequence of max_model_len {model.max_model_len}")
        self.model = model
        self.runner = runner
        self._requests: dict[tuple[int, int], list[Sequence]] = {}
        # How many steps may be on the device when another one is scheduled.
        self._num_ahead = 1 if config.async_scheduling else 0
        self._in_flight: tuple[LaunchedStep, ...] = ()  # oldest first
        # The steps whose sequences are lost if what is being done right now raises.
        self._at_risk: tuple[SchedulerOutput, ...] = ()
        self.scheduler = Scheduler(
            kv_cache,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            max_num_waiting=config.max_num_waiting,
        )

    def has_work(self) -> bool:
        """Whether a step would do anything: what the device computes must be collected even if all of it has ended."""
        return bool(self._in_flight) or self.scheduler.has_unfinished()

    def add_request(self, client_id: int, request: GenerateRequest) -> None:
        """Queue a request. Raises a RequestError, and keeps nothing of it, when it cannot be served.

        `request.request_id` must not be in use by the same client (ValueError): ids are the workers' own.
        """
        key = (client_id, request.request_id)
        if key in self._requests:
            raise ValueError(f"client {client_id} uses request id {request.request_id} twice")
        params, model = request.params, self.model
        check_request(request.prompt_token_ids, params, model, priority=request.priority)
        sequences = Sequence.samples_of(
            request, client_id, params.seed if params.seed is not None else secrets.randbits(64)
        )
        max_num_tokens = model.max_model_len
        if params.max_tokens is not None:
            max_num_tokens = min(max_num_tokens, len(request.prompt_token_ids) + params.max_tokens)
        stop_token_ids = frozenset(params.stop_token_ids) | frozenset(() if params.ignore_eos else model.eos_token_ids)
        waits_for_tokens = self.runner.waits_for_tokens(request)
        for sequence in sequences:
            sequence.max_num_tokens = max_num_tokens
            sequence.stop_token_ids = stop_token_ids
            sequence.waits_for_tokens = waits_for_tokens
        self.scheduler.add(sequences)
        self._requests[key] = sequences

    def abort(self, client_id: int, request_id: int, index: int | None = None) -> None:
        """End a request, or one sample of it, without an answer; one that is not here (any more) is ignored."""
        for sequence in list(self._requests.get((client_id, request_id), ())):
            if index is None or sequence.index == index:
                self._finish(sequence, "abort")

    def abort_client(self, client_id: int) -> None:
        """End all requests of a client that has gone."""
        for key in [key for key in self._requests if key[0] == client_id]:
            self.abort(*key)

    def fail(self, sequences: list[Sequence], error: ServingError) -> list[ClientFailure]:
        """End the whole requests that these sequences belong to, and say why."""
        failed = {(sequence.client_id, sequence.request.request_id) for sequence in sequences}
        failures = []
        for client_id, request_id in sorted(failed):
            for sequence in list(self._requests.get((client_id, request_id), ())):
                self._finish(sequence, "error")
            failures.append(ClientFailure(client_id, failure(request_id, error)))
        return failures

    def fail_expired(self, now: float, error: ServingError) -> list[ClientFailure]:
        """End every request whose deadline lies before `now`."""
        return self.fail([s for s in self.scheduler.unfinished() if s.request.deadline <= now], error)

    def fail_step(self, error: ServingError) -> list[ClientFailure]:
        """After `step` raised: end every request that was in the step at fault; the others go on.

        A step that could not be launched loses its own sequences. One that could not be collected loses those of the
        step behind it as well, which the device computed from its tokens.
        """
        at_risk, self._at_risk = self._at_risk, ()
        self.scheduler.discard_uncommitted(len(self._in_flight))
        return self.fail([s for output in at_risk for s, _ in output.scheduled if s.finish_reason is None], error)

    def step(self, on_launched: Callable[[], None] = _nothing) -> ClientOutputs:
        """Launch a step and collect one: the same, or with overlap the one before, which was computed meanwhile.

        `on_launched` runs while the device works: it may add and abort requests. After an exception call `fail_step`,
        or end the requests of all clients.
        """
        has_launched = len(self._in_flight) <= self._num_ahead and self._launch()
        on_launched()
        if has_launched and len(self._in_flight) <= self._num_ahead:
            return {}  # the first of a row of steps: its tokens come with the second
        return self._collect()

    def _launch(self) -> bool:
        """Schedule and launch a step; False if there is nothing to schedule."""
        self._at_risk = ()
        output = self.scheduler.schedule(len(self._in_flight))
        if not output.scheduled:
            return False
        self._at_risk = (output,)
        handle = self.runner.launch(output)
        self._at_risk = ()
        self._in_flight = (*self._in_flight, LaunchedStep(output, _advance(output), handle))
        return True

    def _collect(self) -> ClientOutputs:
        """Wait for the oldest step, if there is one, and hand out what it sampled."""
        if not self._in_flight:
            return {}
        in_flight, self._in_flight = self._in_flight, ()
        self._at_risk = tuple(step.output for step in in_flight)
        sampled = self.runner.collect(in_flight[0].handle)
        self.scheduler.commit()
        outputs = self._update(in_flight[0], sampled)
        self._in_flight, self._at_risk = in_flight[1:], ()
        return outputs

    def _update(self, step: LaunchedStep, sampled: SampledTokens) -> ClientOutputs:
        if sampled.prompt_logprobs:
            _gather_prompt_logprobs(step, sampled.prompt_logprobs)
        outputs: ClientOutputs = defaultdict(list)
        block_size = self.scheduler.kv_cache.block_size
        all_logprobs = sampled.logprobs or itertools.repeat(())
        pairs = zip(step.output.scheduled, sampled.token_ids, all_logprobs, strict=False)
        for (sequence, _), new_token_ids, logprobs in pairs:
            # Aborted while the step ran, or ended by the token of the step before; or it is still inside its prompt.
            if sequence.finish_reason is not None or not new_token_ids:
                continue
            [token_id] = new_token_ids
            token_ids = sequence.token_ids
            token_ids.append(token_id)
            sequence.num_pending_tokens -= 1
            num_known = len(token_ids)
            reason: FinishReason | None = None
            # The runner bans these tokens for min_tokens, unless the request leaves it no other.
            if token_id in sequence.stop_token_ids and _has_min_tokens(sequence):
                reason = "stop"
            elif num_known >= sequence.max_num_tokens:
                reason = "length"
            if reason is None and not logprobs and num_known > sequence.num_prompt_tokens + 1:
                output = RequestOutput(sequence.request.request_id, sequence.index, new_token_ids)
            else:
                output = _output(sequence, new_token_ids, logprobs, reason)
            outputs[sequence.client_id].append(output)
            if reason is not None:
                self._finish(sequence, reason)
            elif num_known % block_size == 0:
                self.scheduler.note_full_block(sequence)
        return outputs

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        self.scheduler.finish(sequence, reason)
        key = (sequence.client_id, sequence.request.request_id)
        self._requests[key].remove(sequence)
        if not self._requests[key]:
            del self._requests[key]


def failure(request_id: int, error: ServingError) -> RequestFailed:
    """`error` as the message that tells a worker of it."""
    return RequestFailed(request_id=request_id, code=error.code, message=error.message, param=error.param)


def _advance(output: SchedulerOutput) -> list[int]:
    """Count the tokens of a step that has been launched as computed: what is launched after it finds their K/V.

    Whoever has none missing gets a token. Returns the first position of each pair after the decodes.
    """
    for sequence, _ in output.scheduled[: output.num_decodes]:
        sequence.num_computed_tokens += 1
        sequence.num_pending_tokens += 1
    first_positions = []
    for sequence, num_tokens in output.scheduled[output.num_decodes :]:
        first_positions.append(sequence.num_computed_tokens)
        sequence.num_computed_tokens += num_tokens
        if sequence.num_uncomputed_tokens == 0:
            sequence.num_pending_tokens += 1
    return first_positions


def _has_min_tokens(sequence: Sequence) -> bool:
    return len(sequence.token_ids) - sequence.num_prompt_tokens > sequence.request.params.min_tokens


def _gather_prompt_logprobs(step: LaunchedStep, entries: SequenceABC[SequenceABC[TokenLogprobs]]) -> None:
    """Keep the entries that the step's tokens gave, of those the ones that are new.

    A sequence preempted inside its prompt computes it again; what was gathered first stays.
    """
    num_decodes = step.output.num_decodes  # which have no entries
    pairs = step.output.scheduled[num_decodes:]
    for (sequence, _), first, new in zip(pairs, step.first_positions, entries[num_decodes:], strict=True):
        num_known = len(sequence.prompt_logprobs) - first
        sequence.prompt_logprobs.extend(new[max(0, num_known) :])


def _output(
    sequence: Sequence,
    new_token_ids: list[int],
    logprobs: SequenceABC[TokenLogprobs],
    reason: FinishReason | None,
) -> RequestOutput:
    params = sequence.request.params
    usage = prompt_logprobs = None
    # What is known: another token may be pending.
    num_output_tokens = len(sequence.token_ids) - sequence.num_prompt_tokens
    is_first = num_output_tokens == len(new_token_ids)
    # With the first output too: a text that a stop string ends never sees the last one.
    if reason is not None or is_first:
        usage = Usage(
            num_prompt_tokens=sequence.num_prompt_tokens,
            num_output_tokens=num_output_tokens,
            num_cached_tokens=sequence.num_cached_tokens,
        )
    if params.prompt_logprobs is not None and is_first:
        prompt_logprobs, sequence.prompt_logprobs = sequence.prompt_logprobs, []
    return RequestOutput(
        request_id=sequence.request.request_id,
        index=sequence.index,
        new_token_ids=new_token_ids,
        finish_reason=reason,
        stop_token_id=new_token_ids[-1] if reason == "stop" else None,
        logprobs=None if params.logprobs is None else list(logprobs),
        prompt_logprobs=prompt_logprobs,
        usage=usage,
    )
