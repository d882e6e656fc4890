"""The whole of Galley as a user starts it: `serve` with the shipped model, on a free port of 127.0.0.1."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from engine.api import EngineStatus, FrameReader, decode_engine_message

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "models/galley-tiny"
START_TIMEOUT_S = 120.0
TIMEOUT_S = 60.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_until(condition: Callable[[], Any], timeout_s: float = TIMEOUT_S, what: str = "condition") -> Any:
    """The first true value of `condition`, polled; TimeoutError when it does not come."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise TimeoutError(what)


class Stack:
    """A running `serve`. `url` is where it listens."""

    def __init__(self, *arguments: str, environment: dict[str, str] | None = None) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, str(ROOT / "serve"), "--model", str(MODEL), "--host", "127.0.0.1", *arguments]
        if not environment or "SAGEMAKER_BIND_TO_PORT" not in environment:
            command += ["--port", str(self.port)]
        self.started = time.monotonic()
        self.process = subprocess.Popen(command, env={**os.environ, **(environment or {})}, cwd="/")

    def wait_ready(self) -> float:
        """Seconds from the start, or from now if it had started before, to /ping 200."""
        wait_until(lambda: self.process.poll() is not None or self.ping() == 200, START_TIMEOUT_S, "/ping 200")
        assert self.process.poll() is None, "serve has ended"
        return time.monotonic() - self.started

    def ping(self) -> int:
        """The status of /ping, or 0 while nobody listens."""
        try:
            with urllib.request.urlopen(f"{self.url}/ping", timeout=2) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def post(self, path: str, body: Any, timeout_s: float = TIMEOUT_S) -> tuple[int, Any]:
        """Status and decoded JSON body; `body` is sent as it is if it is bytes."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def chat(self, text: str, **fields: Any) -> str:
        status, body = self.post(
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": text}], "temperature": 0, **fields},
        )
        assert status == 200, body
        content: str = body["choices"][0]["message"]["content"]
        return content

    def children(self, word: str) -> list[psutil.Process]:
        """Our processes with `word` on their command line, oldest first."""
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if word in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE:
                    found.append(child)
        return sorted(found, key=lambda child: child.create_time())

    def engine(self) -> psutil.Process:
        """The engine process, once there is one."""
        process: psutil.Process = wait_until(lambda: self.children("engine"), what="an engine")[0]
        return process

    def workers(self) -> list[psutil.Process]:
        """The gunicorn workers: the children of the gunicorn master."""
        master = self.children("container.web")[0]
        return master.children()

    @contextlib.contextmanager
    def watch(self) -> Iterator["Watch"]:
        """The engine's own word on how many sequences run, over its socket."""
        command = self.engine().cmdline()
        watch = Watch(command[command.index("--socket") + 1])
        try:
            yield watch
        finally:
            watch.socket.close()

    def stop(self, timeout_s: float = 40.0) -> int:
        """SIGTERM, wait, and the exit code; whatever is left is killed and fails the test."""
        family = [*psutil.Process(self.process.pid).children(recursive=True)] if self.process.poll() is None else []
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(timeout_s)
        finally:
            _, alive = psutil.wait_procs(family, timeout=5)
            for process in alive:
                process.kill()
            if self.process.poll() is None:
                self.process.kill()
        assert not alive, f"left behind: {alive}"
        return code


class Watch:
    """A connection to the engine that only listens."""

    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(10)
        self.socket.connect(path)
        self._frames = FrameReader()
        # What the engine sends on connecting is its last word, up to a second old: only what comes after it is news.
        self._since = time.monotonic()

    def wait(self, condition: Callable[[EngineStatus], bool], timeout_s: float = TIMEOUT_S) -> EngineStatus:
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            for payload in self._frames.feed(self.socket.recv(65536)):
                message = decode_engine_message(payload)
                if isinstance(message, EngineStatus) and message.stamp > self._since and condition(message):
                    return message
        raise TimeoutError

    def wait_running(self, count: int) -> EngineStatus:
        return self.wait(lambda status: status.num_running >= count)

    def wait_idle(self) -> EngineStatus:
        """When nothing runs, nothing waits and every block is free."""
        return self.wait(
            lambda s: s.num_running + s.num_waiting == 0 and s.num_blocks > 0 and s.num_free_blocks == s.num_blocks
        )
