"""One call of the container's /invocations, with a deadline and an eye on the client that waits for it.

Knows HTTP towards the container. Must not know SageMaker's answers to its clients.
"""

import contextlib
import http.client
import io
import selectors
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

from sagemaker.container import Address

_READ_BYTES = 64 * 1024


class ContainerTimedOut(Exception):
    """The deadline passed before the container had answered in full."""


class ContainerBroke(Exception):
    """The container refused the connection, closed it early, or sent something that is not HTTP."""


class ClientLeft(Exception):
    """The client closed its connection; nobody waits for the answer."""


class _WatchedSocket(io.RawIOBase):
    """A socket's reading side for http.client, where each read waits by `wait` first.

    http.client reads a chunk's end together with the next chunk's head, so only down here is it known that it would
    block.
    """

    def __init__(self, connected: socket.socket, wait: Callable[[], None]) -> None:
        self._socket = connected
        self._wait = wait

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._wait()
        return self._socket.recv_into(buffer)


class Invocation:
    """One POST /invocations. Use it in `with`, which closes the connection: a container takes that for an abort.

    client: the socket of whoever waits for the answer; it is only peeked at.
    deadline: time.monotonic() at which the container must have answered; may be moved between calls.
    All methods raise ContainerTimedOut, ContainerBroke and ClientLeft.
    """

    def __init__(self, address: Address, client: socket.socket, deadline: float) -> None:
        self.deadline = deadline
        self._connection = http.client.HTTPConnection(address.host, address.port)
        self._client = client
        self._selector = selectors.DefaultSelector()
        self._response: http.client.HTTPResponse | None = None

    def __enter__(self) -> "Invocation":
        return self

    def __exit__(self, *_: object) -> None:
        self._selector.close()
        if self._response is not None:
            self._response.close()
        self._connection.close()

    def send(self, body: bytes, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        """Send the request and wait for the head of the answer."""
        with self._errors():
            self._connection.timeout = self._remaining_s()
            self._connection.connect()
            self._selector.register(self._connection.sock, selectors.EVENT_READ)
            self._selector.register(self._client, selectors.EVENT_READ)
            # A container may answer and close before it has read all: the answer tells more than the broken pipe.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self._connection.request("POST", "/invocations", body, {**headers, "Connection": "close"})
            watched = _WatchedSocket(self._connection.sock, self._wait_readable)
            self._response = http.client.HTTPResponse(cast(socket.socket, watched), method="POST")
            self._response.begin()
            return self._response

    def chunks(self) -> Iterator[bytes]:
        """The pieces of the answer's body as they arrive, none of them empty. Raises ContainerBroke at a cut-off."""
        assert self._response is not None, "send first"
        while data := self._read(self._response):
            yield data
        if self._response.length:
            raise ContainerBroke("the container closed the connection within its answer")

    def read(self) -> bytes:
        """The rest of the answer's body."""
        return b"".join(self.chunks())

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        if response.isclosed() or response.length == 0:
            return b""
        with self._errors():
            return response.read1(_READ_BYTES)

    def _wait_readable(self) -> None:
        """Until the container has sent something (or closed); watches the client meanwhile."""
        while True:
            ready = {key.fileobj for key, _ in self._selector.select(self._remaining_s())}
            if self._connection.sock in ready:
                return
            if self._client in ready:
                self._check_client()

    def _check_client(self) -> None:
        try:
            gone = self._client.recv(1, socket.MSG_PEEK) == b""
        except OSError:
            gone = True
        if gone:
            raise ClientLeft
        # It sends its next request already; from now on only a failing write tells.
        self._selector.unregister(self._client)

    def _remaining_s(self) -> float:
        remaining_s = self.deadline - time.monotonic()
        if remaining_s <= 0:
            raise ContainerTimedOut
        return remaining_s

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except TimeoutError as error:
            raise ContainerTimedOut from error
        except (OSError, http.client.HTTPException) as error:
            raise ContainerBroke(type(error).__name__) from error
