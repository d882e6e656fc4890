"""What only a real server shows: clients that leave, an engine that dies or hangs, bodies of every size, keep-alive."""

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.http.conftest import REPLY
from tests.http.scripted_engine import ScriptedEngine, wait_until
from tests.http.web_process import WebProcess, post_bytes, running_web

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}]}
STALL_LIMIT_S = 2.0


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory, shared_engine: ScriptedEngine) -> Iterator[WebProcess]:
    directory = tmp_path_factory.mktemp("web")
    with running_web(directory, shared_engine.path, stall_limit_s=STALL_LIMIT_S, request_timeout_s=30) as web:
        yield web


@pytest.fixture(autouse=True)
def ready(web: WebProcess, engine: ScriptedEngine) -> Iterator[None]:
    web.wait_ready()
    yield


def read_response(sock: socket.socket) -> tuple[int, dict[str, str], bytes]:
    response = http.client.HTTPResponse(sock, method="POST")
    response.begin()
    return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()


def post(web: WebProcess, path: str, body: Any, *headers: str) -> tuple[int, dict[str, str], bytes]:
    with web.connect() as sock:
        sock.sendall(post_bytes(path, body, *headers))
        return read_response(sock)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_a_client_that_leaves_is_told_to_the_engine_within_a_second(
    web: WebProcess, engine: ScriptedEngine, stream: bool
) -> None:
    # One token, so that the stream has begun; then nothing that a failing write could notice.
    engine.step_s = 0.3
    sock = web.connect()
    sock.sendall(post_bytes(CHAT, {**BODY, "stream": stream}))
    if stream:
        assert b"200 OK" in sock.recv(4096)
    wait_until(lambda: engine.num_running == 1)
    engine.held.set()
    left = time.monotonic()
    sock.close()
    wait_until(lambda: engine.aborted, what="an abort")
    assert engine.aborted[0][0] - left < 1.0
    assert engine.num_running == 0


def test_a_stream_is_sent_as_it_is_made(web: WebProcess, engine: ScriptedEngine) -> None:
    engine.step_s = 0.2
    with web.connect() as sock:
        sock.sendall(post_bytes("/invocations", {"inputs": "a", "stream": True}))
        wait_until(lambda: engine.num_running == 1)
        time.sleep(0.5)
        engine.held.set()  # whoever waits for the end waits for ever
        response = http.client.HTTPResponse(sock, method="POST")
        response.begin()
        assert response.headers["Transfer-Encoding"] == "chunked"
        assert response.readline().startswith(b"data: ")
        engine.step_s = 0.0
        engine.held.clear()
        assert REPLY in json.loads(response.read().split(b"data:")[-1])["generated_text"]


def test_a_pipelined_request_waits_its_turn_and_is_no_departure(web: WebProcess, engine: ScriptedEngine) -> None:
    engine.step_s = 0.02
    with web.connect() as sock:
        sock.sendall(post_bytes(CHAT, BODY))
        wait_until(lambda: engine.num_running == 1)
        sock.sendall(post_bytes(CHAT, {**BODY, "stream": True, "max_tokens": 3}))
        assert json.loads(read_response(sock)[2])["choices"][0]["message"]["content"] == REPLY
        assert read_response(sock)[2].endswith(b"data: [DONE]\n\n")
    assert engine.aborted == []


def test_a_client_that_leaves_behind_a_pipelined_request(web: WebProcess, engine: ScriptedEngine) -> None:
    engine.held.set()
    sock = web.connect()
    sock.sendall(post_bytes(CHAT, BODY))
    wait_until(lambda: engine.num_running == 1)
    sock.sendall(post_bytes(CHAT, BODY))
    time.sleep(0.2)
    left = time.monotonic()
    sock.close()
    wait_until(lambda: engine.aborted, what="an abort")
    assert engine.aborted[0][0] - left < 1.0


def test_many_requests_on_one_connection(web: WebProcess, engine: ScriptedEngine) -> None:
    with web.connect() as sock:
        for stream in [False, True] * 5:
            sock.sendall(post_bytes(CHAT, {**BODY, "stream": stream}))
            assert read_response(sock)[0] == 200
    assert len(engine.generated) == 10
    assert engine.aborted == []


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_the_engine_dies_in_the_middle(web: WebProcess, engine: ScriptedEngine, stream: bool) -> None:
    engine.step_s = 0.05
    with web.connect() as sock:
        sock.sendall(post_bytes(CHAT, {**BODY, "stream": stream}))
        if stream:
            assert b"200 OK" in sock.recv(1, socket.MSG_PEEK) + sock.recv(65536, socket.MSG_PEEK)
        wait_until(lambda: engine.num_running == 1)
        died = time.monotonic()
        engine.die()
        try:
            status, headers, body = read_response(sock)
            assert time.monotonic() - died < 1.0
            if stream:
                assert status == 200
                assert json.loads(body.split(b"data: ")[-1])["error"]["code"] == "engine_died"
                assert body.count(b'"error"') == 1
            else:
                assert status == 503
                assert headers["retry-after"] == "2"
                assert json.loads(body)["error"]["code"] == "engine_died"
            assert web.ping()[0] == 503
            assert post(web, CHAT, BODY)[0] == 503
        finally:
            engine.start()


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_an_engine_that_hangs_is_unhealthy_and_its_requests_end(
    web: WebProcess, engine: ScriptedEngine, stream: bool
) -> None:
    engine.step_s = 0.05
    with web.connect() as sock:
        sock.sendall(post_bytes(CHAT, {**BODY, "stream": stream}))
        wait_until(lambda: engine.num_running == 1)
        if stream:
            assert b"200 OK" in sock.recv(1, socket.MSG_PEEK) + sock.recv(65536, socket.MSG_PEEK)
        stalled = time.monotonic()
        engine.stalled.set()
        status, _, body = read_response(sock)
        assert time.monotonic() - stalled < STALL_LIMIT_S + 2.0
        assert status == (200 if stream else 503)
        assert b"engine_died" in body
        assert web.ping()[0] == 503
        assert web.ping()[1]["status"] == "stalled"


def test_overload_and_failure_keep_their_status(web: WebProcess, engine: ScriptedEngine) -> None:
    for code, status in (("overloaded", 429), ("deadline_exceeded", 504), ("generation_failed", 500)):
        engine.failure = (code, "So it is.")
        for stream in (False, True):
            got, headers, body = post(web, CHAT, {**BODY, "stream": stream})
            assert got == status
            assert ("retry-after" in headers) == (status == 429)
            assert json.loads(body)["error"]["message"] == "So it is."


def test_large_bodies(web: WebProcess, engine: ScriptedEngine) -> None:
    """50 MB of text are refused for the context; more than max_body_mb are not even read."""
    status, _, body = post(web, CHAT, {"messages": [{"role": "user", "content": "x" * 50_000_000}]})
    assert status == 400
    assert json.loads(body)["error"]["code"] == "context_length_exceeded"
    with web.connect() as sock:
        sock.sendall(post_bytes(CHAT, b"", length=101 * 2**20))
        assert read_response(sock)[0] == 413


def test_chunked_bodies(web: WebProcess, engine: ScriptedEngine) -> None:
    data = json.dumps(BODY).encode()
    coded = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (data[:10], data[10:])) + b"0\r\n\r\n"
    with web.connect() as sock:
        for _ in range(2):
            sock.sendall(post_bytes(CHAT, coded, "Transfer-Encoding: chunked"))
            assert read_response(sock)[0] == 200
    with web.connect() as sock:
        sock.sendall(post_bytes(CHAT, b"5\r\nhello, this is no chunk", "Transfer-Encoding: chunked"))
        assert read_response(sock)[0] == 400
    chunk = b"100000\r\n" + b"x" * 2**20 + b"\r\n"
    with web.connect() as sock:
        sock.sendall(post_bytes(CHAT, b"", "Transfer-Encoding: chunked"))
        for _ in range(101):
            sock.sendall(chunk)
        assert read_response(sock)[0] == 413


@pytest.mark.parametrize("chunk", [b"1\r\na\r\n", b'1;a="' + b"x" * 3000 + b'"\r\na\r\n'], ids=["tiny", "extended"])
def test_ping_is_answered_while_tiny_chunks_arrive(web: WebProcess, engine: ScriptedEngine, chunk: bytes) -> None:
    is_over = threading.Event()

    def send() -> None:
        with web.connect() as sock, contextlib.suppress(OSError):
            sock.sendall(post_bytes(CHAT, b"", "Transfer-Encoding: chunked"))
            while not is_over.is_set():
                sock.sendall(chunk * 2000)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        end = time.monotonic() + 3
        while time.monotonic() < end:
            assert web.ping()[0] == 200  # within the 2 s of the platform
    finally:
        is_over.set()
        thread.join(20)


def test_the_kernel_drops_a_client_that_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    from container.web_worker import DrainingWorker

    limits: list[int] = []

    def handle(worker: Any, listener: Any, client: socket.socket, addr: Any) -> None:
        limits.append(client.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT))

    monkeypatch.setattr("gunicorn.workers.ggevent.GeventWorker.handle", handle)
    worker = DrainingWorker.__new__(DrainingWorker)
    worker._idle = set()
    with socket.socket() as client:
        worker.handle(None, client, None)
    assert limits == [120_000]


def test_a_callers_text_is_no_line_of_the_log(web: WebProcess, engine: ScriptedEngine) -> None:
    body = {**BODY, "model": "x\n2026-12-01 00:00:00,000 ERROR 1 container.supervisor: made up \x1b[31m"}
    assert post(web, CHAT, body)[0] == 404
    log = web.log.read_text()
    assert "made up" in log
    assert "x\\x0a2026-12-01 00:00:00,000 ERROR 1 container.supervisor: made up \\x1b[31m" in log


def test_head_and_options(web: WebProcess) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", web.port, timeout=10)
    for method, path, status in (("HEAD", "/ping", 200), ("OPTIONS", CHAT, 405), ("HEAD", CHAT, 405)):
        connection.request(method, path)
        response = connection.getresponse()
        response.read()
        assert response.status == status
        if method == "OPTIONS":
            assert response.headers["Allow"] == "POST"
    connection.close()


@pytest.mark.parametrize(
    ("path", "header", "status"),
    [
        (CHAT, "Content-Encoding: br", 415),
        (CHAT, "Content-Encoding: gzip", 415),
        (CHAT, "Content-Encoding: identity", 200),
        (CHAT, "Transfer-Encoding: gzip, chunked", 415),
        ("/" + CHAT, "Accept: */*", 404),
    ],
)
def test_codings_and_doubled_slashes(
    web: WebProcess, engine: ScriptedEngine, path: str, header: str, status: int
) -> None:
    got, _, body = post(web, path, BODY, header)
    assert got == status
    assert ("error" in json.loads(body)) == (status != 200)


@pytest.mark.parametrize("sent", ["whole body", "half of it"])
def test_a_client_that_closes_its_sending_half_gets_nothing(web: WebProcess, engine: ScriptedEngine, sent: str) -> None:
    engine.held.set()
    data = post_bytes(CHAT, BODY)
    with web.connect() as sock:
        sock.sendall(data if sent == "whole body" else data[:-10])
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(1000) == b""


def test_a_slow_body_takes_its_time_from_the_whole(tmp_path: Path, engine: ScriptedEngine) -> None:
    data = post_bytes(CHAT, BODY)
    with running_web(tmp_path, engine.path, request_timeout_s=1) as web, web.connect() as sock:
        started = time.monotonic()
        sock.sendall(data[:-10])
        status, _, body = read_response(sock)
        assert status == 504
        assert json.loads(body)["error"]["code"] == "deadline_exceeded"
        assert 0.8 < time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"this is no HTTP\r\n\r\n", 400),
        (b"GET /ping HTTP/1.1\r\nHost: x\r\nBad Header: y\r\n\r\n", 400),
        (b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
        (b"GET /ping HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * 20_000 + b"\r\n\r\n", 431),
        (b"GET /ping HTTP/1.1\r\n" + b"X-Many: 1\r\n" * 101 + b"\r\n", 431),
    ],
    ids=["words", "header name", "long line", "long header", "many headers"],
)
def test_what_is_no_http_gets_an_error_body_too(web: WebProcess, data: bytes, status: int) -> None:
    with web.connect() as sock:
        sock.sendall(data)
        got, headers, body = read_response(sock)
    assert got == status
    assert headers["content-type"] == "application/json"
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}


def test_ping_answers_while_a_long_prompt_is_tokenised(web: WebProcess, engine: ScriptedEngine) -> None:
    body = {"messages": [{"role": "user", "content": "x" * 20_000_000}]}
    with web.connect() as sock:
        sock.sendall(post_bytes(CHAT, body))
        worst = 0.0
        end = time.monotonic() + 1
        while time.monotonic() < end:
            asked = time.monotonic()
            assert web.ping()[0] == 200
            worst = max(worst, time.monotonic() - asked)
        assert read_response(sock)[0] == 400
    assert worst < 1.0


def test_a_model_without_a_tokenizer_ends_the_web_tier_with_one_line(tmp_path: Path, engine: ScriptedEngine) -> None:
    other = ScriptedEngine(
        tmp_path / "other.sock", msgspec.structs.replace(engine.model, model_dir=str(tmp_path)), engine.reply
    )
    other.start()
    web = WebProcess(tmp_path, other.path)
    try:
        assert web.process.wait(20) not in (0, None)
    finally:
        web.stop()
        other.die()
    assert "has no tokenizer.json" in web.log.read_text()
    assert "Traceback" not in web.log.read_text()


def test_idle_connections_do_not_delay_the_end(tmp_path: Path, engine: ScriptedEngine) -> None:
    with running_web(tmp_path, engine.path, grace_s=20) as web, web.connect() as sock, web.connect() as busy:
        sock.sendall(post_bytes(CHAT, BODY))
        assert read_response(sock)[0] == 200
        engine.step_s = 0.02
        busy.sendall(post_bytes(CHAT, BODY))
        wait_until(lambda: engine.num_running == 1)
        asked = time.monotonic()
        web.process.terminate()
        with contextlib.suppress(OSError), web.connect():
            assert web.stop(15) == 0
        assert time.monotonic() - asked < 5
        assert read_response(busy)[0] == 200
