"""A real gunicorn with our workers on a free port of 127.0.0.1, over a ScriptedEngine of the test's own process."""

import contextlib
import dataclasses
import json
import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from container.config import ServerConfig
from tests.http.scripted_engine import wait_until

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class WebProcess:
    """`port` is where it listens."""

    def __init__(
        self, directory: Path, engine_socket: Path, custom_code: dict[str, Any] | None = None, **settings: Any
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        server = ServerConfig(host="127.0.0.1", port=self.port, **{"num_workers": 1, **settings})
        content = {
            "server": dataclasses.asdict(server),
            "engine_socket": str(engine_socket),
            "custom_code": custom_code,
            "parent_pid": os.getpid(),
        }
        file = directory / "web.json"
        file.write_text(json.dumps(content))
        self.log = directory / "web.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "container.web", "--settings", str(file)], cwd=ROOT, stderr=log
            )

    def ping(self) -> tuple[int, Any]:
        """Status and body of /ping; status 0 while nobody listens."""
        try:
            with urllib.request.urlopen(f"{self.url}/ping", timeout=2) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)
        except OSError:
            return 0, None

    def wait_ready(self) -> None:
        wait_until(lambda: self.ping()[0] == 200, 20, "/ping 200")

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def stop(self, timeout_s: float = 10.0) -> int:
        """SIGTERM and the exit code."""
        self.process.terminate()
        try:
            return self.process.wait(timeout_s)
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait(5)


@contextlib.contextmanager
def running_web(directory: Path, engine_socket: Path, **settings: Any) -> Iterator[WebProcess]:
    web = WebProcess(directory, engine_socket, **settings)
    try:
        web.wait_ready()
        yield web
    finally:
        web.stop()


def post_bytes(path: str, body: Any, *headers: str, length: int | None = None) -> bytes:
    """A POST as it travels."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = [f"POST {path} HTTP/1.1", "Host: x", "Content-Type: application/json", *headers]
    if not any(header.lower().startswith("transfer-encoding") for header in headers):
        head.append(f"Content-Length: {len(data) if length is None else length}")
    return "\r\n".join(head).encode() + b"\r\n\r\n" + data
