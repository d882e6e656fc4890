"""What `engine` in a script stands on: a TextRun of the worker, driven from a native thread.

Knows TextRun and the bridge. Must not know scripts or HTTP.
"""

import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import gevent
from flask import g, has_request_context

from container.custom_code.bridge import Bridge, native_queue
from container.custom_code.handle import Piece, Prompt
from container.engine_client import Engine, RequestOptions
from container.served_model import ServedModel
from container.text_run import Job, TextRun
from engine.api import GenerationFailed, InvalidRequest, RequestAborted, SamplingParams, ServingError
from engine.text import bad_words_ids


class EngineBackend:
    """See Backend."""

    def __init__(self, engine: Engine, bridge: Bridge, timeout_s: float) -> None:
        """timeout_s: of a generation outside of a request; within one it is the request's deadline."""
        self._engine = engine
        self._bridge = bridge
        self._timeout_s = timeout_s

    def pieces(self, prompt: Prompt, parameters: dict[str, Any]) -> Iterator[Piece]:
        """See Backend. Raises a ServingError."""
        model = self._bridge.in_hub(self._engine.model)
        job = _job(model, prompt, parameters)
        deadline = g.deadline if has_request_context() else time.monotonic() + self._timeout_s
        queue = native_queue()
        generations = (g.get("generations") if has_request_context() else None) or Generations()

        def start() -> _Pump:
            generations.check()
            pump = _Pump(self._engine, model, job, deadline, queue)
            generations.running.add(pump)
            return pump

        pump = self._bridge.in_hub(start)
        try:
            while not isinstance(item := queue.get(), _End):
                yield item
            if item.error is not None:
                raise item.error
        finally:
            generations.running.discard(pump)
            self._bridge.in_hub(pump.close)


class Generations:
    """Those of one request's script. Used in the worker's loop, but for the removal of what has ended."""

    def __init__(self) -> None:
        self.running: set[_Pump] = set()
        self._is_cancelled = False

    def cancel(self) -> None:
        """The client has left: the script gets RequestAborted where it generates, now or later."""
        self._is_cancelled = True
        for pump in list(self.running):
            pump.cancel()

    def check(self) -> None:
        """Raises RequestAborted when the client has left."""
        if self._is_cancelled:
            raise RequestAborted("The client has left.")


@dataclasses.dataclass(frozen=True)
class _End:
    error: ServingError | None


class _Pump:
    """A greenlet that moves a run's deltas into a queue."""

    def __init__(self, engine: Engine, model: ServedModel, job: Job, deadline: float, queue: Any) -> None:
        self._queue = queue
        self._run = TextRun(engine, model, job)
        # Without the client's socket: a script may run several generations of one request, and only one may watch it.
        self._run.start(deadline, None)
        self._greenlet = gevent.spawn(self._move)

    def cancel(self) -> None:
        """Stop: whoever waits gets RequestAborted."""
        self._run.cancel()

    def close(self) -> None:
        """Stop what still runs."""
        self._greenlet.kill(block=False)
        self._run.close()

    def _move(self) -> None:
        # The thread waits for an end, whatever happens here.
        error: ServingError | None = GenerationFailed("The generation ended unexpectedly.")
        try:
            for _, delta in self._run:
                self._queue.put(Piece(delta.text, len(delta.token_ids), delta.finish_reason))
            error = None
        except ServingError as its_error:
            error = its_error
        finally:
            self._queue.put(_End(error))


def _job(model: ServedModel, prompt: Prompt, parameters: dict[str, Any]) -> Job:
    stop = parameters.get("stop", ())
    try:
        params = SamplingParams(**{**parameters, "stop": (stop,) if isinstance(stop, str) else tuple(stop or ())})
    except TypeError as error:
        raise InvalidRequest(f"engine.generate: {error}.") from None
    if params.n != 1:
        raise InvalidRequest("engine.generate makes one text per call: 'n' must be 1.", "n")
    if isinstance(prompt, str):
        token_ids = model.encode(prompt, "prompt", add_special_tokens=True)
    elif prompt and isinstance(prompt[0], dict):
        text = model.chat_template.render(list(prompt))  # type: ignore[arg-type]
        token_ids = model.encode(text, "prompt", add_special_tokens=False)
    else:
        token_ids = [int(token_id) for token_id in prompt]  # type: ignore[arg-type]
    bad_ids = bad_words_ids(model.tokenizer, params.bad_words, model.info.vocab_size)
    return Job([token_ids], params, RequestOptions(bad_words_ids=bad_ids))
