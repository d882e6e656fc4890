"""InvokeEndpointAsync for the local endpoint: requests wait their turn, answers go to files.

Knows the queue and where answers lie. Must not know HTTP towards the client.
"""

import concurrent.futures
import contextlib
import dataclasses
import logging
import socket
import time
import urllib.parse
import uuid
from collections.abc import Mapping
from pathlib import Path

from sagemaker.container import Address
from sagemaker.invocation import ClientLeft, ContainerBroke, ContainerTimedOut, Invocation

MAX_INLINE_BYTES = 128_000
MAX_INPUT_BYTES = 10**9
DEFAULT_TIMEOUT_S = 900.0
# The platform's default of MaxConcurrentInvocationsPerInstance is its own choice; this many keep a small engine busy.
MAX_CONCURRENT = 8

_logger = logging.getLogger(__name__)


class BadInput(Exception):
    """The input cannot be read; the message is for the caller."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Accepted:
    """Where the answer will be: output when the container answers 2xx, failure otherwise. Both are file:// URIs."""

    inference_id: str
    output: str
    failure: str


class AsyncInvocations:
    """The queue in front of one container. directory: of the answers, `ID.out` and `ID.error`; made when missing."""

    def __init__(self, container: Address, directory: Path) -> None:
        self._container = container
        self._directory = directory.resolve()
        self._pool = concurrent.futures.ThreadPoolExecutor(MAX_CONCURRENT, thread_name_prefix="async")
        # Invocation watches the socket of whoever waits for the answer; here it is `close` that leaves.
        self._waiting, self._watched = socket.socketpair()

    def submit(
        self, body: bytes, headers: Mapping[str, str], *, inference_id: str | None, timeout_s: float
    ) -> Accepted:
        """Queue one request. Raises OSError when the directory cannot be made."""
        self._directory.mkdir(parents=True, exist_ok=True)
        # The files' names are ours: an id from the client may hold a path, or come twice.
        stem = self._directory / str(uuid.uuid4())
        output, failure = stem.with_suffix(".out"), stem.with_suffix(".error")
        self._pool.submit(self._run, body, dict(headers), (output, failure), timeout_s)
        return Accepted(
            inference_id=inference_id or str(uuid.uuid4()), output=output.as_uri(), failure=failure.as_uri()
        )

    def close(self) -> None:
        """Drop what waits, cut what runs, and wait for the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._waiting.close()
        self._pool.shutdown(wait=True)
        self._watched.close()

    def _run(self, body: bytes, headers: dict[str, str], places: tuple[Path, Path], timeout_s: float) -> None:
        output, failure = places
        # Each has a socket of its own to watch: Invocation takes it out of its selector, never reads it.
        with Invocation(self._container, self._watched, time.monotonic() + timeout_s) as invocation:
            try:
                answer = invocation.send(body, headers)
                content = invocation.read()
            except ClientLeft:
                return
            except ContainerTimedOut:
                self._write(failure, f"The container did not answer within {timeout_s:g} seconds.".encode())
                return
            except ContainerBroke as error:
                self._write(failure, f"The container gave no answer ({error}).".encode())
                return
        self._write(output if answer.status // 100 == 2 else failure, content)

    def _write(self, path: Path, content: bytes) -> None:
        """Whole or not at all: who polls for the file may read it the moment it is there."""
        part = path.with_suffix(".part")
        try:
            part.write_bytes(content)
            part.rename(path)
        except OSError:
            _logger.exception("an answer could not be written")
            with contextlib.suppress(OSError):
                part.unlink()


def read_input(location: str) -> bytes:
    """The bytes at a file:// URI. Raises BadInput; the local endpoint has no S3."""
    try:
        parts = urllib.parse.urlsplit(location)
        path = Path(urllib.parse.unquote(parts.path))
        is_file = path.is_file()
        too_large = is_file and path.stat().st_size > MAX_INPUT_BYTES
    except (ValueError, OSError):
        raise BadInput(f"InputLocation {location[:200]} is no address of a file.") from None
    if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
        raise BadInput(f"InputLocation {location} is not of the form file:///PATH: the local endpoint has no S3.")
    if path.exists() and not is_file:
        raise BadInput(f"InputLocation {location} is not a file.")
    if too_large:
        raise BadInput(f"InputLocation {location} is over {MAX_INPUT_BYTES} bytes, the platform's limit.")
    try:
        return path.read_bytes()
    except ValueError:  # a name with a zero byte in it
        raise BadInput(f"InputLocation {location[:200]} is no address of a file.") from None
    except OSError as error:
        raise BadInput(f"InputLocation {location} cannot be read: {error.strerror}.") from error
