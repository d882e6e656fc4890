"""The container's side of hosting: start it, wait until it is healthy, stop it, as SageMaker does.

Knows the contract (`serve`, /ping, SIGTERM) and processes. Must not know what the container serves.
"""

import contextlib
import dataclasses
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

PING_TIMEOUT_S = 2.0
PING_INTERVAL_S = 0.5
STARTUP_TIMEOUT_S = 8 * 60.0
STOP_TIMEOUT_S = 30.0


class ContainerFailed(Exception):
    """The container did not become healthy; the message is one line for people."""


@dataclasses.dataclass(frozen=True)
class Address:
    """Where a container listens for HTTP."""

    host: str
    port: int


def serve_command(repository: Path) -> list[str]:
    """The command that SageMaker runs as `docker run IMAGE serve`: the executable `serve`, here the repository's own.

    Raises ContainerFailed when there is none, there or on the PATH.
    """
    own = repository / "serve"
    if own.is_file():
        return [sys.executable, str(own)]
    found = shutil.which("serve")
    if found is None:
        raise ContainerFailed(f"there is no executable 'serve', neither {own} nor on the PATH")
    return [found]


def free_port() -> int:
    """A port of 127.0.0.1 that was free just now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class LocalContainer:
    """A serving process of our own on 127.0.0.1, in place of a Docker container. Stops it on leaving `with`.

    SageMaker mounts the model at /opt/ml/model and calls port 8080; a process gets both by `--model` and `--port`.
    """

    def __init__(self, command: list[str], model_dir: Path) -> None:
        self.address = Address("127.0.0.1", free_port())
        arguments = ["--model", str(model_dir), "--host", self.address.host, "--port", str(self.address.port)]
        # A process group of its own: Ctrl-C in our terminal must not reach it past us, and no child of it may stay.
        self._process = subprocess.Popen([*command, *arguments], stdin=subprocess.DEVNULL, start_new_session=True)

    def __enter__(self) -> "LocalContainer":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def exit_status(self) -> int | None:
        """The exit status of the process, negative for a signal; None while it runs."""
        return self._process.poll()

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """SIGTERM, and after the process's end or timeout_s SIGKILL to whatever of its group is left."""
        if self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout_s)
        # A container's other processes end with its first one.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def wait_until_healthy(
    address: Address,
    *,
    timeout_s: float,
    exit_status: Callable[[], int | None],
    stopped: Callable[[float], bool],
) -> bool:
    """Ask /ping until it answers 200, as SageMaker does before it sends requests. True once it does.

    exit_status: of the container's process; None while it runs. stopped: waits that many seconds and tells whether to
    give up quietly, in which case the result is False. Raises ContainerFailed when the process ends or timeout_s pass.
    """
    give_up = time.monotonic() + timeout_s
    while True:
        answer = _ping(address)
        if answer == "200":
            return True
        status = exit_status()
        if status is not None:
            raise ContainerFailed(f"the container ended with status {status} before /ping answered 200")
        if time.monotonic() >= give_up:
            raise ContainerFailed(
                f"http://{address.host}:{address.port}/ping did not answer 200 within {timeout_s:g} s (last: {answer})"
            )
        if stopped(PING_INTERVAL_S):
            return False


def _ping(address: Address) -> str:
    connection = http.client.HTTPConnection(address.host, address.port, timeout=PING_TIMEOUT_S)
    try:
        connection.request("GET", "/ping", headers={"Connection": "close"})
        return str(connection.getresponse().status)
    except TimeoutError:
        return f"no answer in {PING_TIMEOUT_S:g} s"
    except OSError as error:
        return error.strerror or type(error).__name__
    except http.client.HTTPException as error:
        return type(error).__name__
    finally:
        connection.close()
