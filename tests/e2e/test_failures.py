"""What happens when something dies, hangs, leaves or is full: seen from outside, on the real stack."""

import http.client
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from tests.e2e.stack import Stack, wait_until

STALL_LIMIT_S = 4.0
LONG = {"prompt": "Hello", "max_tokens": 8000, "ignore_eos": True, "temperature": 0}


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """A stack of its own: these tests break it. Four sequences may wait, so that it is easily full."""
    running = Stack("--stall-limit-s", str(STALL_LIMIT_S), "--max-num-waiting", "4", "--max-num-seqs", "8")
    try:
        running.wait_ready()
        yield running
    finally:
        assert running.stop() == 0


class Caller(threading.Thread):
    """One client on its own connection; keeps the status and the whole body."""

    def __init__(self, stack: Stack, body: dict[str, Any], path: str = "/v1/completions") -> None:
        super().__init__(daemon=True)
        self.connection = http.client.HTTPConnection("127.0.0.1", stack.port, timeout=60)
        self.path, self.body = path, body
        self.status = 0
        self.answer = b""
        self.headers: dict[str, str] = {}
        self.first_byte = threading.Event()
        self.error: Exception | None = None
        self.start()

    def run(self) -> None:
        try:
            self.connection.request("POST", self.path, json.dumps(self.body), {"Content-Type": "application/json"})
            response = self.connection.getresponse()
            self.status, self.headers = response.status, dict(response.getheaders())
            while chunk := response.read1(65536):
                self.answer += chunk
                self.first_byte.set()
        except (OSError, http.client.HTTPException) as error:
            self.error = error
        finally:
            self.connection.close()

    def leave(self) -> None:
        """As a client that is killed: the socket ends while the answer is still expected."""
        self.connection.sock.shutdown(socket.SHUT_RDWR)

    def finished(self) -> "Caller":
        self.join(60)
        assert not self.is_alive(), "a client hangs"
        return self


def clean_error(caller: Caller) -> dict[str, Any]:
    """The one error that a request ends with: a 503 body, or the last event of a stream."""
    caller.finished()
    assert caller.error is None, caller.error
    if caller.body.get("stream"):
        assert caller.status in (200, 503)
        events = [line for line in caller.answer.decode().split("\n") if line.startswith("data: ")]
        if caller.status == 200:
            assert sum('"error"' in event for event in events) == 1
            error: dict[str, Any] = json.loads(events[-1].removeprefix("data: "))["error"]
            return error
    assert caller.status == 503, caller.answer[:300]
    body_error: dict[str, Any] = json.loads(caller.answer)["error"]
    return body_error


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_blocks_within_a_second(stack: Stack, stream: bool) -> None:
    with stack.watch() as watch:
        caller = Caller(stack, {**LONG, "stream": stream})
        watch.wait_running(1)
        caller.leave()
        left = time.monotonic()
        status = watch.wait_idle()
        # The stamp comes once a second, so the second after which it must show is the one after that.
        assert status.stamp - left < 2.0
    assert stack.chat("hi")


def test_a_dead_worker_takes_its_sequences_along_and_is_replaced(stack: Stack) -> None:
    with stack.watch() as watch:
        callers = [Caller(stack, {**LONG, "stream": True}) for _ in range(4)]
        watch.wait_running(4)
        before = {worker.pid for worker in stack.workers()}
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
        assert watch.wait_idle().stamp - killed < 2.0
        for caller in callers:
            caller.finished()
    wait_until(lambda: len({w.pid for w in stack.workers()} - before) == len(before), what="new workers")
    stack.wait_ready()
    assert stack.chat("hi")


def test_killing_the_engine_under_load_gives_clean_errors_and_a_new_engine(stack: Stack) -> None:
    engine = stack.engine()
    callers = [Caller(stack, {**LONG, "stream": index % 2 == 0}) for index in range(8)]
    with stack.watch() as watch:
        watch.wait_running(8)
        engine.kill()
        killed = time.monotonic()
        wait_until(lambda: stack.ping() == 503, what="/ping 503")
        assert time.monotonic() - killed < 2.0
        for caller in callers:
            assert clean_error(caller)["code"] == "engine_died"
    wait_until(lambda: stack.ping() == 200, what="/ping 200")
    assert stack.engine().pid != engine.pid
    assert stack.chat("hi")


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_a_stopped_engine_is_unhealthy_within_the_stall_limit_and_replaced(stack: Stack, busy: bool) -> None:
    engine = stack.engine()
    callers = []
    if busy:
        with stack.watch() as watch:
            callers = [Caller(stack, {**LONG, "stream": index % 2 == 0}) for index in range(4)]
            watch.wait_running(4)
    os.kill(engine.pid, signal.SIGSTOP)
    stopped = time.monotonic()
    wait_until(lambda: stack.ping() == 503, what="/ping 503")
    assert time.monotonic() - stopped < STALL_LIMIT_S + 2.0
    for caller in callers:
        clean_error(caller)
    wait_until(lambda: stack.ping() == 200, what="/ping 200")
    assert stack.engine().pid != engine.pid
    assert not psutil.pid_exists(engine.pid)
    assert stack.chat("hi")


def test_overload_is_refused_at_once(stack: Stack) -> None:
    with stack.watch() as watch:
        callers = [Caller(stack, {**LONG, "stream": True}) for _ in range(12)]
        watch.wait(lambda status: status.num_running == 8 and status.num_waiting == 4)
        asked = time.monotonic()
        late = Caller(stack, LONG).finished()
        assert time.monotonic() - asked < 2.0
        assert late.status == 429
        assert int(late.headers["Retry-After"]) >= 1
        assert json.loads(late.answer)["error"]["code"] == "overloaded"
        for caller in callers:
            caller.leave()
        watch.wait_idle()


def test_sigterm_lets_running_requests_finish() -> None:
    running = Stack()
    try:
        running.wait_ready()
        with running.watch() as watch:
            caller = Caller(running, {**LONG, "max_tokens": 2000, "stream": True})
            watch.wait_running(1)
        caller.first_byte.wait(20)
    finally:
        stopped = time.monotonic()
        code = running.stop()
    assert code == 0
    assert time.monotonic() - stopped < 30
    caller.finished()
    assert caller.error is None
    assert caller.answer.rstrip().endswith(b"data: [DONE]")


def test_a_model_that_cannot_be_loaded_ends_serve_with_one_line(tmp_path_factory: pytest.TempPathFactory) -> None:
    empty = tmp_path_factory.mktemp("empty-model")
    running = Stack("--model", str(empty))
    try:
        assert running.process.wait(60) not in (0, None)
    finally:
        running.stop()


def test_an_engine_that_keeps_dying_ends_serve() -> None:
    running = Stack("--max-engine-restarts", "1")
    try:
        for _ in range(2):
            running.wait_ready()
            running.engine().kill()
            wait_until(lambda: running.process.poll() is not None or running.ping() == 503)
        assert running.process.wait(60) not in (0, None)
    finally:
        running.stop()


def test_sagemaker_bind_to_port() -> None:
    from tests.e2e.stack import free_port

    port = free_port()
    running = Stack(environment={"SAGEMAKER_BIND_TO_PORT": str(port)})
    running.port, running.url = port, f"http://127.0.0.1:{port}"
    try:
        running.wait_ready()
        assert running.post("/invocations", {"inputs": "Hello"})[0] == 200
    finally:
        assert running.stop() == 0
