"""A container that does what the request's body says, so that each test is its own script."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from sagemaker.container import Address

PIECES = [b'data: {"text": "Hel', b'lo"}\n\n', b"data: [DONE]\n\n"]


class FakeContainer(ThreadingHTTPServer):
    """`left` is set when a connection ends before its answer does; `release` lets a held answer go on."""

    daemon_threads = False

    def __init__(self) -> None:
        self.left = threading.Event()
        self.release = threading.Event()
        self.bodies: list[bytes] = []
        self.ping_statuses: Iterator[int] = iter(())
        super().__init__(("127.0.0.1", 0), _Handler)
        self.address = Address("127.0.0.1", self.server_address[1])
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,))

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Callers cut connections on purpose."""

    def __enter__(self) -> "FakeContainer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.release.set()
        self.shutdown()
        self._thread.join()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: FakeContainer
    protocol_version = "HTTP/1.1"
    timeout = 10.0

    def do_GET(self) -> None:
        self.send_response(next(self.server.ping_statuses, 200) if self.path == "/ping" else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.bodies.append(body)
        if body.startswith(b"{"):
            self._chat(json.loads(body))
            return
        action, _, argument = body.decode("latin-1").partition(" ")
        getattr(self, f"_{action[:20].replace('-', '_')}")(argument)

    def _chat(self, request: Any) -> None:
        """Answers a chat; one that asks to fail does so within its stream."""
        if not request.get("stream"):
            choice = {"message": {"role": "assistant", "content": "chat answer é"}}
            self._answer(200, json.dumps({"choices": [choice]}).encode(), "application/json")
            return
        prompt = request["messages"][-1]["content"]
        self._begin_stream()
        if "fail" in prompt:
            self._events('{"choices": [{"delta": {"content": "half"}}]}', '{"error": {"message": "no more memory"}}')
        else:
            self._events('{"choices": [{"delta": {"content": "streamed"}}]}')
            if "hold" in prompt:
                self._watch_until_released()
            self._events('{"choices": [{"delta": {"content": " 世界"}}]}', "[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def _events(self, *events: str) -> None:
        """In pieces that cut events and characters."""
        data = "".join(f"data: {event}\n\n" for event in events).encode()
        for start in range(0, len(data), 7):
            self._chunk(data[start : start + 7])

    def _echo(self, argument: str) -> None:
        seen = {"path": self.path, "headers": {k.lower(): v for k, v in self.headers.items()}, "body": argument}
        self._answer(200, json.dumps(seen).encode(), "application/x-echo")

    def _size(self, argument: str) -> None:
        self._answer(200, str(len(argument)).encode())

    def _status(self, argument: str) -> None:
        self._answer(int(argument), b'{"error": {"message": "n\xc3\xb6"}}', "application/json")

    def _headers(self, argument: str) -> None:
        self.send_response(200)
        for name in ("Custom-Attributes", "New-Session-Id", "Closed-Session-Id"):
            self.send_header(f"X-Amzn-SageMaker-{name}", f"my-{name.lower()}; Expires=x")
        self.send_header("Retry-After", "3")
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def _session(self, argument: str) -> None:
        """Answers with the headers that the argument holds, one a line."""
        self.send_response(200)
        for line in argument.splitlines():
            name, _, value = line.partition(": ")
            self.send_header(f"X-Amzn-SageMaker-{name}", value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _hold(self, argument: str) -> None:
        self._watch_until_released()
        self._answer(200, b"late")

    def _cut_head(self, argument: str) -> None:
        self.wfile.write(b"HTTP/1.1 20")
        self.close_connection = True

    def _cut_body(self, argument: str) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc")
        self.close_connection = True

    def _trickle(self, argument: str) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        self._repeat(b"x")

    def _stream(self, argument: str) -> None:
        self._begin_stream()
        for piece in PIECES:
            self._chunk(piece)
        self.wfile.write(b"0\r\n\r\n")

    def _stream_then_hold(self, argument: str) -> None:
        self._begin_stream()
        self._chunk(PIECES[0])
        self._watch_until_released()
        self._chunk(PIECES[1])
        self.wfile.write(b"0\r\n\r\n")

    def _stream_broken(self, argument: str) -> None:
        self._begin_stream()
        self._chunk(PIECES[0])
        self.close_connection = True

    def _stream_bad_chunk(self, argument: str) -> None:
        self._begin_stream()
        self._chunk(PIECES[0])
        self.wfile.write(b"zz\r\n")
        self.close_connection = True

    def _stream_plain(self, argument: str) -> None:
        """Without chunks: the end of the connection is the end of the answer."""
        self.close_connection = True
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        for piece in PIECES:
            self.wfile.write(piece)

    def _stream_forever(self, argument: str) -> None:
        self._begin_stream()
        self._repeat(b"1\r\nx\r\n")

    def _begin_stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("X-Amzn-SageMaker-Custom-Attributes", "mine")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def _answer(self, status: int, content: bytes, content_type: str = "text/plain") -> None:
        try:
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
        except OSError:
            self.close_connection = True

    def _repeat(self, data: bytes) -> None:
        give_up = time.monotonic() + 10
        try:
            while time.monotonic() < give_up and not self.server.release.wait(0.02):
                self.wfile.write(data)
        except OSError:
            self.server.left.set()
        self.close_connection = True

    def _watch_until_released(self) -> None:
        self.connection.settimeout(0.02)
        give_up = time.monotonic() + 10
        while time.monotonic() < give_up and not self.server.release.is_set():
            try:
                if self.connection.recv(1, socket.MSG_PEEK) == b"":
                    self.server.left.set()
                    break
            except TimeoutError:
                continue
            except OSError:
                self.server.left.set()
                break
        self.connection.settimeout(self.timeout)

    def log_message(self, format: str, *args: Any) -> None:
        pass
