"""A fake engine on a real Unix socket: it speaks engine.api's frames from native threads and does as a test tells it.

Every sequence gets the tokens of `reply`, one per step, and ends with the end-of-sequence id or at max_tokens.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent

from engine.api import (
    Abort,
    CloseSession,
    EngineMessage,
    EngineState,
    EngineStatus,
    FrameReader,
    GenerateRequest,
    ModelInfo,
    OpenSession,
    Outputs,
    RequestFailed,
    RequestOutput,
    SessionAnswer,
    TokenLogprobs,
    Usage,
    WorkerMessage,
    decode_worker_message,
    encode_message,
    frame,
)

STATUS_PERIOD_S = 0.2


def wait_until(condition: Callable[[], Any], timeout_s: float = 10.0, what: str = "condition") -> Any:
    """The first true value of `condition`; TimeoutError when it does not come."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if value := condition():
            return value
        # Under Flask's test client the engine client's greenlets live in this thread.
        gevent.sleep(0.01)
    raise TimeoutError(what)


def scripted_logprob(index: int, place: int) -> float:
    """Another one at every place, and lower with the sample's index."""
    return -0.25 - place / 8 - index


class ScriptedEngine:
    """See the module. Attributes may be set at any time.

    reply: token ids that every sequence gets.
    step_s: seconds per step.
    held: while set, no step is made.
    stalled: while set, nothing is sent at all, stamps included.
    echoes: every sequence gets its prompt's tokens instead.
    max_num_seqs: what the engine tells; max_running: sequences beyond so many are refused as Overloaded.
    most_running: the most sequences that ran at a time.
    sessions: the open ones.
    failure: (code, message) that the next requests end with.
    num_cached_tokens: what the first sample of each prompt tells; the others tell one more.
    logprob: of the token at (sample index, place): see `scripted_logprob`. A test may set another function.

    The most likely tokens beside a token are those with the next higher ids, each 1.0 less likely than the one before;
    of a prompt's token the rank is 3.
    """

    def __init__(self, path: Path, model: ModelInfo, reply: list[int]) -> None:
        self.path = path
        self.model = model
        self.reply = reply
        self.step_s = 0.0
        self.state: EngineState = "ready"
        self.held = threading.Event()
        self.stalled = threading.Event()
        self.echoes = False
        self.max_num_seqs = 0
        self.max_running: int | None = None
        self.most_running = 0
        self.sessions: list[str] = []
        self.failure: tuple[str, str] | None = None
        self.num_cached_tokens = 0
        self.logprob: Callable[[int, int], float] = scripted_logprob
        self.generated: list[GenerateRequest] = []
        self.aborted: list[tuple[float, Abort]] = []
        self._stamp = time.monotonic()
        self._lock = threading.Lock()
        self._connections: dict[socket.socket, dict[tuple[int, int], tuple[GenerateRequest, int]]] = {}
        self._stopped = threading.Event()
        self._listener: socket.socket | None = None
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        self._stopped.clear()
        self.path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self.path))
        self._listener.listen()
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._accept, self._step, self._push)]
        for thread in self._threads:
            thread.start()

    def die(self) -> None:
        """As a killed process: every socket ends at once."""
        self._stopped.set()
        assert self._listener is not None
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            connections, self._connections = list(self._connections), {}
        for connection in connections:
            _hang_up(connection)
        for thread in self._threads:
            thread.join(5)

    @property
    def num_running(self) -> int:
        with self._lock:
            return sum(map(len, self._connections.values()))

    @property
    def num_connections(self) -> int:
        with self._lock:
            return len(self._connections)

    def _accept(self) -> None:
        assert self._listener is not None
        while not self._stopped.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self._connections[connection] = {}
            self._send(connection, self._status())
            threading.Thread(target=self._read, args=(connection,), daemon=True).start()

    def _read(self, connection: socket.socket) -> None:
        reader = FrameReader()
        try:
            while data := connection.recv(65536):
                for payload in reader.feed(data):
                    self._receive(connection, decode_worker_message(payload))
        except OSError:
            pass
        with self._lock:
            self._connections.pop(connection, None)

    def _receive(self, connection: socket.socket, message: WorkerMessage) -> None:
        if isinstance(message, OpenSession | CloseSession):
            self._send(connection, self._change_sessions(message))
            return
        with self._lock:
            running = self._connections.get(connection, {})
            if isinstance(message, Abort):
                self.aborted.append((time.monotonic(), message))
                for key in [k for k in running if k[0] == message.request_id and message.index in (None, k[1])]:
                    del running[key]
                return
            request = message.request
            self.generated.append(request)
            failure = self.failure
            num_running = sum(map(len, self._connections.values()))
            if request.session_id and request.session_id not in self.sessions:
                failure = ("invalid_request", f"Bad request: session not found: {request.session_id}")
            elif self.max_running is not None and num_running and num_running + request.params.n > self.max_running:
                failure = ("overloaded", "Full.")
            if failure is None:
                running.update({(request.request_id, i): (request, 0) for i in range(request.params.n)})
                self.most_running = max(self.most_running, num_running + request.params.n)
                return
            code, text = failure
        self._send(connection, RequestFailed(request_id=request.request_id, code=code, message=text))

    def _change_sessions(self, message: OpenSession | CloseSession) -> EngineMessage:
        if isinstance(message, OpenSession):
            session_id = f"session-{len(self.sessions)}"
            self.sessions.append(session_id)
            expires_s = 1_800_000_000 + message.lifetime_s
            return SessionAnswer(request_id=message.request_id, session_id=session_id, expires_s=expires_s)
        if message.session_id in self.sessions:
            self.sessions.remove(message.session_id)
            return SessionAnswer(request_id=message.request_id, session_id=message.session_id, expires_s=0)
        text = f"Bad request: session not found: {message.session_id}"
        return RequestFailed(request_id=message.request_id, code="invalid_request", message=text)

    def _step(self) -> None:
        while not self._stopped.is_set():
            time.sleep(max(self.step_s, 0.001))
            if self.held.is_set() or self.stalled.is_set():
                continue
            with self._lock:
                steps = [(connection, self._advance(running)) for connection, running in self._connections.items()]
            for connection, outputs in steps:
                if outputs:
                    self._send(connection, Outputs(outputs))

    def _advance(self, running: dict[tuple[int, int], tuple[GenerateRequest, int]]) -> list[RequestOutput]:
        outputs = []
        for key, (request, count) in list(running.items()):
            reply = request.prompt_token_ids if self.echoes else self.reply
            token_id = reply[count] if count < len(reply) else self.model.eos_token_ids[0]
            ends = count >= len(reply)
            is_full = request.params.max_tokens is not None and count + 1 >= request.params.max_tokens
            usage = Usage(
                num_prompt_tokens=len(request.prompt_token_ids),
                num_output_tokens=count + 1,
                num_cached_tokens=self.num_cached_tokens + min(key[1], 1) if self.num_cached_tokens else 0,
            )
            num_top, num_prompt_top = request.params.logprobs, request.params.prompt_logprobs
            logprobs = None if num_top is None else [self._entry(token_id, self.logprob(key[1], count), num_top)]
            prompt_logprobs = None
            if num_prompt_top is not None and count == 0:
                ids = request.prompt_token_ids
                prompt_logprobs = [self._entry(ids[i], -i / 2, num_prompt_top, 3) for i in range(1, len(ids))]
            outputs.append(
                RequestOutput(
                    request_id=key[0],
                    index=key[1],
                    new_token_ids=[token_id],
                    finish_reason="stop" if ends else "length" if is_full else None,
                    stop_token_id=token_id if ends else None,
                    logprobs=logprobs,
                    prompt_logprobs=prompt_logprobs,
                    usage=usage if count == 0 or ends or is_full else None,
                )
            )
            running[key] = (request, count + 1)
            if ends or is_full:
                del running[key]
        return outputs

    def _entry(self, token_id: int, logprob: float, num_top: int, rank: int = 1) -> TokenLogprobs:
        top_ids = [(token_id + i) % self.model.vocab_size for i in range(num_top)]
        return TokenLogprobs(logprob, rank, top_ids, [logprob - i for i in range(num_top)])

    def _push(self) -> None:
        while not self._stopped.wait(STATUS_PERIOD_S):
            if self.stalled.is_set():
                continue
            self._stamp = time.monotonic()
            with self._lock:
                connections = list(self._connections)
            for connection in connections:
                self._send(connection, self._status())

    def _status(self) -> EngineStatus:
        return EngineStatus(
            state=self.state,
            stage=f"is {self.state}",
            stamp=self._stamp,
            pid=1,
            model=self.model,
            max_num_seqs=self.max_num_seqs,
        )

    def _send(self, connection: socket.socket, message: EngineMessage) -> None:
        try:
            connection.sendall(frame(encode_message(message)))
        except OSError:
            with self._lock:
                self._connections.pop(connection, None)


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
