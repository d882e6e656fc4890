"""A web worker's one connection to the engine.

One reader greenlet takes the engine's messages and feeds a mailbox per HTTP request; one writer greenlet sends ours,
so that no request's greenlet ever waits in a send. When the connection ends, every open request gets EngineDied at
once, and the client connects again for as long as it lives.

Knows engine.api's messages and gevent. Must not know HTTP, JSON or text.
"""

import dataclasses
import itertools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import gevent
import msgspec
from gevent import socket
from gevent.event import AsyncResult

from container.connection import Connection
from container.engine_generation import EngineGeneration
from container.native_thread import in_thread
from container.served_model import ServedModel, load_served_model
from engine.api import (
    Abort,
    CloseSession,
    EngineDied,
    EngineNotReady,
    EngineStatus,
    FrameError,
    Generate,
    GenerateRequest,
    ModelInfo,
    OpenSession,
    Outputs,
    RequestFailed,
    RequestOutput,
    SamplingParams,
    ServingError,
    SessionAnswer,
    decode_engine_message,
    error_from_code,
)

log = logging.getLogger(__name__)

_RECONNECT_S = (0.05, 0.1, 0.2)
# /ping is one worker's word: the next request may meet another one, that is still about to connect or to load the
# tokenizer of an engine that is ready. So long a request waits for it.
_NOT_CONNECTED, _NO_TOKENIZER = "waiting for the engine", "loading the tokenizer"
_CATCH_UP_S = {_NOT_CONNECTED: 0.5, _NO_TOKENIZER: 10.0}
_CATCH_UP_POLL_S = 0.02
_RELOAD_MODEL_S = 5.0
# The engine answers between two steps.
_CALL_TIMEOUT_S = 30.0
_CONNECTION_ERRORS = (OSError, FrameError, msgspec.MsgspecError, gevent.Timeout)


@dataclasses.dataclass(frozen=True)
class Health:
    """What /ping tells: whether requests can be served now, and for people, what is going on."""

    is_ready: bool
    state: str
    stage: str


@dataclasses.dataclass(frozen=True)
class RequestOptions:
    """What the engine is told of a request besides prompts and parameters: see GenerateRequest.

    num_gathered_tokens: not told, but how many tokens of a sequence may gather before the caller is woken for them.
    """

    priority: int = 0
    cache_salt: str = ""
    session_id: str = ""
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    num_gathered_tokens: int = 1


_NO_OPTIONS = RequestOptions()


class Generation(Protocol):
    """The running sequences of one HTTP request: iterate for their outputs."""

    def __iter__(self) -> Iterator[tuple[int, RequestOutput]]:
        """(prompt index, output) pairs until every sequence has finished. Raises a ServingError."""

    def stop_sequence(self, prompt_index: int, index: int) -> None:
        """This sequence has all it needs (a stop string matched): nothing more of it will be yielded."""

    def cancel(self) -> None:
        """The client has left: stop everything; the iterating greenlet gets RequestAborted. From any greenlet."""

    def close(self) -> None:
        """Nobody iterates any more: stop what still runs. May be called twice."""


class Engine(Protocol):
    """The seam between the routes and the engine: EngineClient, or a fake in a test."""

    def health(self) -> Health:
        """The engine's state from its last pushed status. Never blocks."""

    def model(self) -> ServedModel:
        """The served model. Raises EngineNotReady while there is none."""

    def generate(
        self,
        prompts: Sequence[list[int]],
        params: SamplingParams,
        deadline: float,
        options: RequestOptions = _NO_OPTIONS,
    ) -> Generation:
        """Start params.n sequences for each prompt. Raises EngineNotReady or Overloaded."""

    def max_num_seqs(self) -> int:
        """How many sequences the engine computes in one step, as far as it has said; at least 1. Never blocks."""

    def open_session(self, lifetime_s: float) -> SessionAnswer:
        """A new session. Raises EngineNotReady, EngineDied or Overloaded."""

    def close_session(self, session_id: str) -> SessionAnswer:
        """The session that was closed. Raises InvalidRequest for an unknown one, EngineNotReady or EngineDied."""


class EngineClient:
    """The Engine behind a Unix socket. `start` it after the fork, in the hub that serves the requests."""

    def __init__(
        self,
        socket_path: str,
        stall_limit_s: float,
        on_unusable_model: Callable[[], None] = lambda: None,
        load_model: Callable[[ModelInfo], ServedModel] = load_served_model,
    ) -> None:
        """`on_unusable_model` is called when the model's tokenizer or template cannot be loaded, now or later."""
        self._socket_path = socket_path
        self._stall_limit_s = stall_limit_s
        self._on_unusable_model = on_unusable_model
        self._load_model = load_model
        self._status: EngineStatus | None = None
        self._model: ServedModel | None = None
        self._is_loading_model = False
        self._connection: Connection | None = None
        self._generations: dict[int, EngineGeneration] = {}
        self._calls: dict[int, AsyncResult] = {}  # of an answer that is one message
        self._request_ids = itertools.count(1)
        self._greenlets: list[gevent.Greenlet] = []

    def start(self) -> None:
        """Connect, and stay connected, in the background."""
        self._greenlets = [gevent.spawn(self._stay_connected), gevent.spawn(self._watch_for_stalls)]

    def stop(self) -> None:
        """Close the connection and end the greenlets."""
        gevent.killall(self._greenlets, timeout=1)
        if self._connection is not None:
            self._connection.close()

    def health(self) -> Health:
        """See Engine."""
        status = self._status
        if status is None:
            return Health(False, "starting", _NOT_CONNECTED)
        if self._is_stalled(status):
            return Health(False, "stalled", "the engine gives no sign of life")
        if status.state == "ready" and (self._model is None or self._model.info != status.model):
            return Health(False, "starting", _NO_TOKENIZER)
        return Health(status.state == "ready", status.state, status.stage)

    def model(self) -> ServedModel:
        """See Engine. Waits a moment for what this worker alone is late with."""
        asked = time.monotonic()
        health = self.health()
        while time.monotonic() - asked < _CATCH_UP_S.get(health.stage, 0.0):
            gevent.sleep(_CATCH_UP_POLL_S)
            health = self.health()
        if not health.is_ready or self._model is None:
            raise EngineNotReady(f"The model is not ready to serve requests: {health.stage}.")
        return self._model

    def generate(
        self,
        prompts: Sequence[list[int]],
        params: SamplingParams,
        deadline: float,
        options: RequestOptions = _NO_OPTIONS,
    ) -> EngineGeneration:
        """See Engine."""
        connection = self._connection
        if connection is None or not self.health().is_ready:
            raise EngineNotReady(f"The model is not ready to serve requests: {self.health().stage}.")
        requests = [
            GenerateRequest(
                request_id=next(self._request_ids),
                prompt_token_ids=token_ids,
                params=params,
                deadline=deadline,
                bad_words_ids=options.bad_words_ids,
                priority=options.priority,
                cache_salt=options.cache_salt,
                session_id=options.session_id,
            )
            for token_ids in prompts
        ]
        generation = EngineGeneration(self, requests, options.num_gathered_tokens)
        try:
            generation.submit()
        except ServingError:
            generation.close()
            raise
        return generation

    def max_num_seqs(self) -> int:
        """See Engine."""
        return max(1, self._status.max_num_seqs if self._status is not None else 0)

    def open_session(self, lifetime_s: float) -> SessionAnswer:
        """See Engine."""
        return self._call(OpenSession(request_id=next(self._request_ids), lifetime_s=lifetime_s))

    def close_session(self, session_id: str) -> SessionAnswer:
        """See Engine."""
        return self._call(CloseSession(request_id=next(self._request_ids), session_id=session_id))

    def _call(self, message: OpenSession | CloseSession) -> SessionAnswer:
        self.model()  # waits a moment for what is just coming up
        if self._connection is None:
            raise EngineNotReady("The model is not ready to serve requests.")
        answer = self._calls[message.request_id] = AsyncResult()
        try:
            self._connection.send(message)
            with gevent.Timeout(_CALL_TIMEOUT_S, EngineNotReady("The engine did not answer in time.")):
                found: SessionAnswer = answer.get()
                return found
        finally:
            del self._calls[message.request_id]

    def submit(self, request: GenerateRequest, generation: EngineGeneration) -> None:
        """Send a request whose outputs go to `generation`. Raises EngineDied or Overloaded."""
        if self._connection is None:
            raise EngineDied("The engine stopped while it worked on the request.")
        self._connection.send(Generate(request))
        self._generations[request.request_id] = generation

    def abort(self, request_id: int, index: int | None = None) -> None:
        """Tell the engine to stop a request, or one sequence of it. Does not block, cannot fail."""
        if self._connection is not None:
            self._connection.send(Abort(request_id, index), is_bounded=False)

    def forget(self, request_id: int) -> None:
        """Deliver nothing more for this request."""
        self._generations.pop(request_id, None)

    def _is_stalled(self, status: EngineStatus) -> bool:
        # An engine that loads a model stamps at every stage, and a stage may take minutes.
        return status.state != "starting" and time.monotonic() - status.stamp > self._stall_limit_s

    def _stay_connected(self) -> None:
        num_failures = 0
        while True:
            try:
                sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                try:
                    sock.connect(self._socket_path)
                except OSError:
                    sock.close()
                    raise
            except OSError:
                gevent.sleep(_RECONNECT_S[min(num_failures, len(_RECONNECT_S) - 1)])
                num_failures += 1
                continue
            num_failures = 0
            self._connection = Connection(sock, self._stall_limit_s)
            try:
                for payload in self._connection.payloads():
                    self._receive(payload)
            except ConnectionError:
                # Its process has ended; the supervisor knows how, and says so.
                log.info("the engine has hung up")
            except _CONNECTION_ERRORS as error:
                log.error("the connection to the engine broke: %s", error)
            finally:
                self._disconnected()
            gevent.sleep(_RECONNECT_S[0])

    def _disconnected(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None
        self._status = None
        self._fail_all(EngineDied("The engine stopped while it worked on the request."))

    def _fail_all(self, error: ServingError) -> None:
        for generation in set(self._generations.values()):
            generation.fail(error)
        for call in self._calls.values():
            call.set_exception(error)

    def _receive(self, payload: bytes) -> None:
        message = decode_engine_message(payload)
        if isinstance(message, Outputs):
            for output in message.outputs:
                generation = self._generations.get(output.request_id)
                if generation is not None:
                    generation.deliver(output)
        elif isinstance(message, RequestFailed):
            failed = self._generations.get(message.request_id)
            error = error_from_code(message.code, message.message, message.param)
            if failed is not None:
                failed.refuse(message.request_id, error)
            elif message.request_id in self._calls:
                self._calls[message.request_id].set_exception(error)
        elif isinstance(message, SessionAnswer):
            if message.request_id in self._calls:
                self._calls[message.request_id].set(message)
        else:
            self._status = message
            self._load_model_if_new(message)

    def _load_model_if_new(self, status: EngineStatus) -> None:
        known = self._model.info if self._model is not None else None
        if (
            status.state == "ready"
            and status.model is not None
            and status.model != known
            and not self._is_loading_model
        ):
            self._is_loading_model = True
            self._greenlets.append(gevent.spawn(self._load, status.model))

    def _load(self, info: ModelInfo) -> None:
        try:
            self._model = in_thread(self._load_model, info)
            log.info("loaded the tokenizer of %s", info.served_name)
        except ValueError as error:
            log.error("cannot serve %s: %s", info.served_name, error)
            self._on_unusable_model()
            gevent.sleep(_RELOAD_MODEL_S)
        except OSError:
            log.exception("cannot load the tokenizer of %s; trying again", info.served_name)
            gevent.sleep(_RELOAD_MODEL_S)
        finally:
            self._is_loading_model = False

    def _watch_for_stalls(self) -> None:
        num_stale = 0
        while True:
            gevent.sleep(min(1.0, self._stall_limit_s / 4))
            status = self._status
            # Twice in a row: after this process itself was stopped, the reader deserves a chance to catch up first.
            num_stale = num_stale + 1 if status is not None and self._is_stalled(status) else 0
            if num_stale >= 2 and (self._generations or self._calls):
                log.error("the engine gives no sign of life; failing %d requests", len(self._generations))
                self._fail_all(EngineDied("The engine stopped responding while it worked on the request."))
