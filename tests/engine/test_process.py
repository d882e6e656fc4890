"""The engine process over its real socket: what a worker sees, and what happens when somebody dies."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.api import (
    Abort,
    CloseSession,
    EngineConfig,
    EngineMessage,
    EngineStatus,
    FrameReader,
    Generate,
    GenerateRequest,
    OpenSession,
    Outputs,
    RequestFailed,
    RequestOutput,
    SamplingParams,
    SessionAnswer,
    decode_engine_message,
    encode_message,
    frame,
)
from engine.process import EngineProcess
from engine.sequence import SchedulerOutput
from tests.engine.scripted import ScriptedRunner, ScriptedStep, expected_tokens, model_info, runner_for
from tests.engine.scripted_process import BREAK_TOKEN, FAIL_TOKEN

TIMEOUT_S = 20.0


class Client:
    """A worker's end of the socket, blocking."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(TIMEOUT_S)
        self.socket.connect(str(path))
        self.frames = FrameReader()
        self.inbox: list[EngineMessage] = []

    def send(self, message: Generate | Abort | OpenSession | CloseSession) -> None:
        self.socket.sendall(frame(encode_message(message)))

    def generate(self, request_id: int, prompt: list[int], deadline_s: float = 60.0, **params: object) -> None:
        request = GenerateRequest(
            request_id=request_id,
            prompt_token_ids=prompt,
            params=SamplingParams(ignore_eos=True, **params),  # type: ignore[arg-type]
            deadline=time.monotonic() + deadline_s,
        )
        self.send(Generate(request))

    def receive(self) -> EngineMessage:
        while not self.inbox:
            data = self.socket.recv(65536)
            if not data:
                raise EOFError
            self.inbox += [decode_engine_message(payload) for payload in self.frames.feed(data)]
        return self.inbox.pop(0)

    def wait_for(self, condition: Callable[[EngineMessage], bool]) -> EngineMessage:
        end = time.monotonic() + TIMEOUT_S
        while time.monotonic() < end:
            message = self.receive()
            if condition(message):
                return message
        raise TimeoutError

    def status(self, condition: Callable[[EngineStatus], bool]) -> EngineStatus:
        message = self.wait_for(lambda m: isinstance(m, EngineStatus) and condition(m))
        assert isinstance(message, EngineStatus)
        return message

    def finish(self, request_id: int) -> tuple[list[int], RequestOutput]:
        tokens: list[int] = []
        while True:
            message = self.wait_for(lambda m: isinstance(m, Outputs))
            assert isinstance(message, Outputs)
            for output in message.outputs:
                if output.request_id == request_id:
                    tokens += output.new_token_ids
                    if output.finish_reason is not None:
                        return tokens, output

    def failure(self, request_id: int) -> RequestFailed:
        message = self.wait_for(lambda m: isinstance(m, RequestFailed) and m.request_id == request_id)
        assert isinstance(message, RequestFailed)
        return message

    def close(self) -> None:
        self.socket.close()


class Engine:
    def __init__(self, delay_ms: float, grace_s: float, options: list[str]) -> None:
        self._directory = tempfile.TemporaryDirectory()
        self.path = Path(self._directory.name) / "engine.sock"
        command = [sys.executable, "-m", "tests.engine.scripted_process", str(self.path), str(delay_ms), str(grace_s)]
        command += options
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        self.clients: list[Client] = []

    def client(self) -> Client:
        end = time.monotonic() + TIMEOUT_S
        while True:
            try:
                client = Client(self.path)
                break
            except (FileNotFoundError, ConnectionRefusedError):
                if time.monotonic() > end:
                    raise
                time.sleep(0.02)
        self.clients.append(client)
        client.status(lambda status: status.state == "ready")
        return client

    def close(self) -> None:
        for client in self.clients:
            client.close()
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait(TIMEOUT_S)
        self._directory.cleanup()


@pytest.fixture(params=[[], ["overlap"]], ids=["one by one", "overlap"])
def start(request: pytest.FixtureRequest) -> Iterator[Callable[..., Engine]]:
    engines: list[Engine] = []

    def start_engine(delay_ms: float = 0.0, grace_s: float = 5.0) -> Engine:
        engines.append(Engine(delay_ms, grace_s, request.param))
        return engines[-1]

    yield start_engine
    for engine in engines:
        engine.close()


def is_idle(status: EngineStatus) -> bool:
    return status.num_running + status.num_waiting == 0 and status.num_free_blocks == status.num_blocks


def test_a_request_is_answered_and_others_go_on(start: Callable[..., Engine]) -> None:
    engine = start()
    first, second = engine.client(), engine.client()
    first.generate(1, [20, 30], max_tokens=50, n=2)
    second.generate(1, list(range(10, 150)), max_tokens=5)
    assert second.finish(1)[0] == expected_tokens(list(range(10, 150)), 5)
    _, last = first.finish(1)
    assert last.finish_reason == "length"
    assert last.usage is not None
    assert (last.usage.num_prompt_tokens, last.usage.num_output_tokens) == (2, 50)
    assert first.status(is_idle).model is not None
    assert oct(engine.path.stat().st_mode & 0o777) == "0o600"


def test_a_client_that_goes_takes_its_sequences_along(start: Callable[..., Engine]) -> None:
    engine = start(delay_ms=30)
    leaver, witness = engine.client(), engine.client()
    leaver.generate(1, [20], max_tokens=200, n=3)
    witness.status(lambda status: status.num_running == 3)
    leaver.close()
    left = time.monotonic()
    assert witness.status(is_idle).stamp - left < 2.0  # the next stamp but one at the latest


def test_abort_of_one_sample_and_of_a_request(start: Callable[..., Engine]) -> None:
    client = start(delay_ms=30).client()
    client.generate(1, [20], max_tokens=200, n=2)
    client.generate(2, [20], max_tokens=200)
    client.status(lambda status: status.num_running == 3)
    client.send(Abort(1, index=0))
    client.status(lambda status: status.num_running == 2)
    client.send(Abort(1))
    client.send(Abort(2))
    client.send(Abort(77))
    client.status(is_idle)


def test_a_message_that_is_none_of_ours_costs_only_that_connection(start: Callable[..., Engine]) -> None:
    engine = start()
    for garbage in (b"\xff\xff\xff\xff", frame(b"not msgpack"), frame(b"\x81\xa4type\xa4nope"), b"GET / HTTP/1.1\r\n"):
        bad = engine.client()
        bad.socket.sendall(garbage)
        with contextlib.suppress(ConnectionResetError), pytest.raises(EOFError):
            for _ in range(100):
                bad.receive()
    good = engine.client()
    good.generate(1, [20], max_tokens=3)
    assert good.finish(1)[0] == expected_tokens([20], 3)


@pytest.mark.parametrize(
    ("prompt", "params", "code", "param"),
    [
        ([], {}, "invalid_request", "prompt"),
        ([1000], {}, "invalid_request", "prompt"),
        ([-1], {}, "invalid_request", "prompt"),
        ([20] * 256, {}, "context_length_exceeded", "prompt"),
        ([20], {"max_tokens": 256}, "context_length_exceeded", "max_tokens"),
        ([20], {"stop_token_ids": (5000,)}, "invalid_request", "stop_token_ids"),
    ],
)
def test_the_engine_refuses_by_itself(
    start: Callable[..., Engine], prompt: list[int], params: dict, code: str, param: str
) -> None:
    client = start().client()
    client.generate(1, prompt, **params)
    failed = client.failure(1)
    assert (failed.code, failed.param) == (code, param)


def test_a_full_queue_refuses_at_once(start: Callable[..., Engine]) -> None:
    client = start(delay_ms=20).client()
    for request_id in range(12):
        client.generate(request_id, [20], max_tokens=100)
    failed = client.wait_for(lambda message: isinstance(message, RequestFailed))
    assert isinstance(failed, RequestFailed)
    assert failed.code == "overloaded"


def test_a_deadline_ends_a_request(start: Callable[..., Engine]) -> None:
    client = start(delay_ms=20).client()
    client.generate(1, [20], deadline_s=0.3, max_tokens=250)
    assert client.failure(1).code == "deadline_exceeded"
    client.status(is_idle)


def test_a_failed_step_fails_its_requests_and_nothing_else(start: Callable[..., Engine]) -> None:
    client = start().client()
    for request_id in range(5):
        client.generate(request_id, [FAIL_TOKEN], max_tokens=4)
        assert client.failure(request_id).code == "generation_failed"
    client.generate(7, [20], max_tokens=4)
    assert client.finish(7)[0] == expected_tokens([20], 4)
    client.status(is_idle)


def test_a_broken_device_ends_the_process_so_that_it_is_replaced(start: Callable[..., Engine]) -> None:
    engine = start()
    engine.client().generate(0, [BREAK_TOKEN], max_tokens=4)
    assert engine.process.wait(TIMEOUT_S) not in (0, 2)


def test_sigterm_finishes_what_runs_and_refuses_what_comes(start: Callable[..., Engine]) -> None:
    engine = start(delay_ms=20)
    client = engine.client()
    client.generate(1, [20], max_tokens=60)
    client.status(lambda status: status.num_running == 1)
    engine.process.send_signal(signal.SIGTERM)
    client.status(lambda status: status.state == "draining")
    client.generate(2, [20], max_tokens=1)
    assert client.failure(2).code == "engine_not_ready"
    assert client.finish(1)[1].finish_reason == "length"
    assert engine.process.wait(TIMEOUT_S) == 0
    assert not engine.path.exists()


def test_the_grace_period_is_the_limit(start: Callable[..., Engine]) -> None:
    engine = start(delay_ms=50, grace_s=0.5)
    client = engine.client()
    client.generate(1, [20], max_tokens=250)
    client.status(lambda status: status.num_running == 1)
    engine.process.send_signal(signal.SIGTERM)
    asked = time.monotonic()
    assert engine.process.wait(TIMEOUT_S) == 0
    assert time.monotonic() - asked < 5


def test_ready_comes_after_a_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.process.signal.signal", lambda *_: None)
    monkeypatch.setattr("engine.process.gc.freeze", lambda: None)
    states: list[str] = []

    class Watched(ScriptedRunner):
        def launch(self, output: SchedulerOutput) -> ScriptedStep:
            states.append(process._state)
            return super().launch(output)

    config = EngineConfig(max_num_seqs=4, max_num_batched_tokens=64, block_size=16)
    with tempfile.TemporaryDirectory() as directory:
        process = EngineProcess(
            config, Path(directory) / "s", 1.0, lambda config, _: (runner_for(config, 20, Watched), model_info())
        )
        monkeypatch.setattr(process, "_serve", lambda core: states.append(process._state) or 0)
        assert process.run() == 0
    assert states == ["starting", "ready"]


def test_a_stopped_engine_stops_stamping(start: Callable[..., Engine]) -> None:
    engine = start()
    client = engine.client()
    os.kill(engine.process.pid, signal.SIGSTOP)
    client.socket.settimeout(2.5)
    with pytest.raises(TimeoutError):
        for _ in range(10):
            client.receive()
    os.kill(engine.process.pid, signal.SIGCONT)
    client.socket.settimeout(TIMEOUT_S)
    stamp = client.status(lambda status: True).stamp
    assert client.status(lambda status: status.stamp > stamp).state == "ready"


def test_a_session_is_one_to_every_worker(start: Callable[..., Engine]) -> None:
    engine = start()
    first, second = engine.client(), engine.client()
    first.send(OpenSession(request_id=1, lifetime_s=60))
    opened = first.wait_for(lambda m: isinstance(m, SessionAnswer))
    assert isinstance(opened, SessionAnswer)
    assert opened.request_id == 1
    assert opened.expires_s == pytest.approx(time.time() + 60, abs=5)
    request = GenerateRequest(
        request_id=7,
        prompt_token_ids=[1, 2],
        params=SamplingParams(max_tokens=2),
        deadline=time.monotonic() + 60,
        session_id=opened.session_id,
    )
    second.send(Generate(request))
    assert second.finish(7)[1].finish_reason == "length"
    second.send(CloseSession(request_id=8, session_id=opened.session_id))
    closed = second.wait_for(lambda m: isinstance(m, SessionAnswer))
    assert closed == SessionAnswer(request_id=8, session_id=opened.session_id, expires_s=opened.expires_s)
    first.send(Generate(request))
    failed = first.failure(7)
    assert (failed.code, failed.param) == ("invalid_request", "session_id")
    assert failed.message == f"Bad request: session not found: {opened.session_id}"
    first.send(CloseSession(request_id=9, session_id="nobody"))
    assert first.failure(9).message == "Bad request: session not found: nobody"
