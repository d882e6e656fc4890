"""The running sequences of one HTTP request, as a worker feeds them to the engine and takes their outputs.

Knows GenerateRequest, its outputs and the mailbox between greenlets. Must not know the engine's socket or HTTP.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Protocol

from container.mailbox import Mailbox
from engine.api import (
    DeadlineExceeded,
    GenerateRequest,
    Overloaded,
    RequestAborted,
    RequestOutput,
    ServingError,
)

# The engine ends a request at its deadline; this long after it, the worker does so itself.
_DEADLINE_SLACK_S = 2.0
# Of one HTTP request: about as many as the engine computes in one step.
MAX_RUNNING_SEQUENCES = 64


class Client(Protocol):
    """The way to the engine."""

    def submit(self, request: GenerateRequest, generation: "EngineGeneration") -> None:
        """Send a request whose outputs go to `generation`. Raises EngineDied or Overloaded."""

    def abort(self, request_id: int, index: int | None = None) -> None:
        """Stop a request, or one sequence of it. Does not block, cannot fail."""

    def forget(self, request_id: int) -> None:
        """Deliver nothing more for this request."""


class EngineGeneration:
    """See Generation: one engine request per prompt, all in one mailbox.

    Only so many sequences are with the engine at a time, so that one HTTP request with a thousand prompts neither
    fills the engine's waiting queue nor is refused for it.
    """

    def __init__(self, client: Client, requests: Sequence[GenerateRequest], num_gathered_tokens: int = 1) -> None:
        self._client = client
        self._requests = requests
        self._by_id = {request.request_id: request for request in requests}
        self._prompt_index = {request.request_id: i for i, request in enumerate(requests)}
        self._n = requests[0].params.n
        self._deadline = requests[0].deadline
        self._waiting = deque(requests)
        self._running: set[tuple[int, int]] = set()
        self._is_closed = False
        self._mailbox = Mailbox(num_gathered_tokens)

    def submit(self) -> None:
        """Hand over as many prompts as may run at once. Raises EngineDied or Overloaded."""
        while self._waiting and (not self._running or len(self._running) + self._n <= MAX_RUNNING_SEQUENCES):
            request = self._waiting.popleft()
            self._client.submit(request, self)
            self._running.update((request.request_id, index) for index in range(self._n))

    def __iter__(self) -> Iterator[tuple[int, RequestOutput]]:
        while self._running:
            end = self._deadline + _DEADLINE_SLACK_S
            for output in self._mailbox.take(max(0.0, end - time.monotonic())):
                key = (output.request_id, output.index)
                if key not in self._running:
                    continue
                if output.finish_reason is not None:
                    self._finish(key)
                yield self._prompt_index[output.request_id], output
            if time.monotonic() > end:
                raise DeadlineExceeded("The request took longer than this server allows.")

    def deliver(self, output: RequestOutput) -> None:
        """The engine sent this."""
        self._mailbox.put(output)

    def refuse(self, request_id: int, error: ServingError) -> None:
        """The engine does not take one of the prompts, or has failed it.

        For one that its queue has no room for there is room when another of ours has ended; where there is none, and
        for all else, the whole request fails.
        """
        others = {key for key in self._running if key[0] != request_id}
        if isinstance(error, Overloaded) and others:
            self._running = others
            self._client.forget(request_id)
            self._waiting.appendleft(self._by_id[request_id])
        else:
            self.fail(error)

    def fail(self, error: ServingError) -> None:
        """The request ends with `error`, after what has already come."""
        self._mailbox.fail(error)

    def stop_sequence(self, prompt_index: int, index: int) -> None:
        """See Generation."""
        key = (self._requests[prompt_index].request_id, index)
        if key in self._running:
            self._client.abort(*key)
            self._finish(key)

    def cancel(self) -> None:
        """See Generation."""
        self.close()
        self._mailbox.clear()
        self.fail(RequestAborted("The client has left."))

    def close(self) -> None:
        """See Generation."""
        if self._is_closed:
            return
        self._is_closed = True
        self._waiting.clear()
        for request_id in {request_id for request_id, _ in self._running}:
            self._client.abort(request_id)
            self._client.forget(request_id)

    def _finish(self, key: tuple[int, int]) -> None:
        self._running.discard(key)
        if not any(request_id == key[0] for request_id, _ in self._running):
            self._client.forget(key[0])
        self.submit()
