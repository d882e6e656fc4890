"""The engine core: requests in, tokens out, one step at a time.

Knows requests, sequences, the scheduler and a runner. Must not know sockets, threads, clocks or text: the engine
process and the `LLM` class drive it alike, from one thread.
"""

import secrets
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
    """What computes a step. `launch` starts it; `collect` waits for it and returns what it sampled.

    Between the two the caller may abort sequences of the step, but not start another one.
    """

    num_blocks: int

    def launch(self, output: SchedulerOutput) -> Any:
        """Start computing the step; returns a handle for `collect`."""
        ...

    def collect(self, pending: Any) -> SampledTokens:
        """The new tokens of a launched step, one entry per scheduled pair."""
        ...

    def warm_up(self) -> None:
        """Compute a small batch that touches no sequence's blocks. Raises when the device is unusable."""
        ...


class ClientMessage(NamedTuple):
    """A message of the core to one client."""

    client_id: int
    message: RequestOutput | RequestFailed


def _nothing() -> None:
    pass


class EngineCore:
    """Serves the requests of many clients on one runner. Every sequence ends exactly once."""

    def __init__(self, config: EngineConfig, model: ModelInfo, runner: Runner) -> None:
        kv_cache = KVCacheManager(
            runner.num_blocks, config.block_size, enable_prefix_caching=config.enable_prefix_caching
        )
        # So whatever `check_request` lets in can run, if need be alone: nothing waits for blocks that never come.
        if kv_cache.num_blocks_for(model.max_model_len) > kv_cache.pool.num_usable_blocks:
            raise ValueError(f"the KV cache does not hold one sequence of max_model_len {model.max_model_len}")
        self.model = model
        self.runner = runner
        self._requests: dict[tuple[int, int], list[Sequence]] = {}
        self._in_flight: SchedulerOutput | None = None
        self.scheduler = Scheduler(
            kv_cache,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            max_num_waiting=config.max_num_waiting,
        )

    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return self.scheduler.has_unfinished()

    def add_request(self, client_id: int, request: GenerateRequest) -> None:
        """Queue a request. Raises a RequestError, and keeps nothing of it, when it cannot be served.

        `request.request_id` must not be in use by the same client (ValueError): ids are the workers' own.
        """
        key = (client_id, request.request_id)
        if key in self._requests:
            raise ValueError(f"client {client_id} uses request id {request.request_id} twice")
        check_request(request.prompt_token_ids, request.params, self.model, priority=request.priority)
        seed = request.params.seed if request.params.seed is not None else secrets.randbits(64)
        sequences = Sequence.samples_of(request, client_id, seed)
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

    def fail(self, sequences: list[Sequence], error: ServingError) -> list[ClientMessage]:
        """End the whole requests that these sequences belong to, and say why."""
        failed = {(sequence.client_id, sequence.request.request_id) for sequence in sequences}
        messages = []
        for client_id, request_id in sorted(failed):
            for sequence in list(self._requests.get((client_id, request_id), ())):
                self._finish(sequence, "error")
            messages.append(ClientMessage(client_id, failure(request_id, error)))
        return messages

    def fail_expired(self, now: float, error: ServingError) -> list[ClientMessage]:
        """End every request whose deadline lies before `now`."""
        return self.fail([s for s in self.scheduler.unfinished() if s.request.deadline <= now], error)

    def fail_step(self, error: ServingError) -> list[ClientMessage]:
        """End every request that was in the step which just raised; the others go on."""
        in_flight, self._in_flight = self._in_flight, None
        if in_flight is None:
            return []
        return self.fail([s for s, _ in in_flight.scheduled if s.finish_reason is None], error)

    def step(self, on_launched: Callable[[], None] = _nothing) -> list[ClientMessage]:
        """Compute one step. `on_launched` runs while the device works: it may add and abort requests."""
        self._in_flight = self.scheduler.schedule()
        if not self._in_flight.scheduled:
            return []
        pending = self.runner.launch(self._in_flight)
        on_launched()
        sampled = self.runner.collect(pending)
        self.scheduler.commit()
        messages = self._update(self._in_flight, sampled)
        self._in_flight = None
        return messages

    def _update(self, output: SchedulerOutput, sampled: SampledTokens) -> list[ClientMessage]:
        messages: list[ClientMessage] = []
        for i, (sequence, num_tokens) in enumerate(output.scheduled):
            if sequence.finish_reason is not None:  # aborted while the step ran
                continue
            if sampled.prompt_logprobs:
                _gather_prompt_logprobs(sequence, sampled.prompt_logprobs[i])
            sequence.num_computed_tokens += num_tokens
            new_token_ids: list[int] = []
            reason: FinishReason | None = None
            for token_id in sampled.token_ids[i]:
                sequence.token_ids.append(token_id)
                new_token_ids.append(token_id)
                reason = self._finish_reason(sequence, token_id)
                if reason is not None:
                    break
            if new_token_ids:
                logprobs = sampled.logprobs[i][: len(new_token_ids)] if sampled.logprobs else ()
                messages.append(ClientMessage(sequence.client_id, _output(sequence, new_token_ids, logprobs, reason)))
            if reason is not None:
                self._finish(sequence, reason)
        return messages

    def _finish_reason(self, sequence: Sequence, token_id: int) -> FinishReason | None:
        params = sequence.request.params
        # The runner bans these tokens that long, unless the request leaves it no other.
        if sequence.num_output_tokens > params.min_tokens:
            if token_id in params.stop_token_ids:
                return "stop"
            if token_id in self.model.eos_token_ids and not params.ignore_eos:
                return "stop"
        if sequence.num_output_tokens == params.max_tokens or sequence.num_tokens >= self.model.max_model_len:
            return "length"
        return None

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        self.scheduler.finish(sequence, reason)
        key = (sequence.client_id, sequence.request.request_id)
        self._requests[key].remove(sequence)
        if not self._requests[key]:
            del self._requests[key]


def failure(request_id: int, error: ServingError) -> RequestFailed:
    """`error` as the message that tells a worker of it."""
    return RequestFailed(request_id=request_id, code=error.code, message=error.message, param=error.param)


def _gather_prompt_logprobs(sequence: Sequence, entries: SequenceABC[TokenLogprobs]) -> None:
    """Keep the entries that the step's tokens gave, of those the ones that are new.

    A sequence preempted inside its prompt computes it again; what was gathered first stays.
    """
    num_known = len(sequence.prompt_logprobs) - sequence.num_computed_tokens
    sequence.prompt_logprobs.extend(entries[max(0, num_known) :])


def _output(
    sequence: Sequence,
    new_token_ids: list[int],
    logprobs: SequenceABC[TokenLogprobs],
    reason: FinishReason | None,
) -> RequestOutput:
    params = sequence.request.params
    usage = prompt_logprobs = None
    is_first = sequence.num_output_tokens == len(new_token_ids)
    # With the first output too: a text that a stop string ends never sees the last one.
    if reason is not None or is_first:
        usage = Usage(
            num_prompt_tokens=sequence.num_prompt_tokens,
            num_output_tokens=sequence.num_output_tokens,
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
