"""The mailbox of one HTTP request: where the reader greenlet leaves outputs and the request's greenlet takes them.

One merged slot per sequence: a client that reads slowly makes its outputs grow together instead of queueing up. An
error travels the same way, and is final. Knows RequestOutput; must not know sockets or HTTP.
"""

from gevent.event import Event

from engine.api import RequestOutput, ServingError, TokenLogprobs


class Mailbox:
    """Filled by one greenlet, emptied by another, both of one hub."""

    def __init__(self, num_gathered_tokens: int = 1) -> None:
        """The taker is woken when a sequence has ended or so many of its tokens have come."""
        self._num_gathered_tokens = num_gathered_tokens
        self._slots: dict[tuple[int, int], RequestOutput] = {}
        self._error: ServingError | None = None
        self._event = Event()

    def put(self, output: RequestOutput) -> None:
        """Leave an output; it merges with what is still there of the same sequence."""
        key = (output.request_id, output.index)
        earlier = self._slots.get(key)
        slot = self._slots[key] = output if earlier is None else merge(earlier, output)
        if slot.finish_reason is not None or len(slot.new_token_ids) >= self._num_gathered_tokens:
            self._event.set()

    def fail(self, error: ServingError) -> None:
        """End with `error`, after what is still there; the first error counts."""
        if self._error is None:
            self._error = error
        self._event.set()

    def clear(self) -> None:
        """Drop what nobody has taken yet."""
        self._slots = {}

    def take(self, timeout_s: float) -> list[RequestOutput]:
        """All outputs since the last call, at most one per sequence; empty when `timeout_s` passed without any.

        Raises the error that `fail` left, when there is no output any more.
        """
        if self._error is None:
            self._event.wait(timeout_s)
        self._event.clear()
        if not self._slots and self._error is not None:
            raise self._error
        outputs, self._slots = list(self._slots.values()), {}
        return outputs


def merge(earlier: RequestOutput, later: RequestOutput) -> RequestOutput:
    """Two consecutive outputs of one sequence as one."""
    return RequestOutput(
        request_id=later.request_id,
        index=later.index,
        new_token_ids=earlier.new_token_ids + later.new_token_ids,
        finish_reason=later.finish_reason,
        stop_token_id=later.stop_token_id,
        logprobs=_joined(earlier.logprobs, later.logprobs),
        prompt_logprobs=_joined(earlier.prompt_logprobs, later.prompt_logprobs),
        usage=later.usage or earlier.usage,
    )


def _joined(earlier: list[TokenLogprobs] | None, later: list[TokenLogprobs] | None) -> list[TokenLogprobs] | None:
    return later if earlier is None else earlier + (later or [])
