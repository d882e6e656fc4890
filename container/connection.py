"""Frames over the worker's socket to the engine: sends that never block, and what comes back.

Knows sockets, framing and gevent. Must not know what the messages mean.
"""

import contextlib
import logging
from collections import deque
from collections.abc import Iterator

import gevent
from gevent import socket
from gevent.event import Event

from engine.api import FrameReader, Overloaded, WorkerMessage, encode_message, frame

log = logging.getLogger(__name__)

_RECV_BYTES = 256 * 1024
_MAX_QUEUED_BYTES = 64 * 2**20


class Connection:
    """Frames over one socket. A send only queues; the writer greenlet closes a socket that the engine does not read."""

    def __init__(self, sock: socket.socket, send_timeout_s: float) -> None:
        self._sock = sock
        self._send_timeout_s = send_timeout_s
        self._frames: deque[bytes] = deque()
        self._num_queued_bytes = 0
        self._has_frames = Event()
        self._writer = gevent.spawn(self._write)

    def send(self, message: WorkerMessage, *, is_bounded: bool = True) -> None:
        """Queue a message. Raises Overloaded when `is_bounded` and too much is waiting already."""
        data = frame(encode_message(message))
        if is_bounded and self._num_queued_bytes + len(data) > _MAX_QUEUED_BYTES:
            raise Overloaded("Too many requests are on their way to the engine; try again later.")
        self._frames.append(data)
        self._num_queued_bytes += len(data)
        self._has_frames.set()

    def payloads(self) -> Iterator[bytes]:
        """What the engine sends, until it closes the connection."""
        reader = FrameReader()
        while data := self._sock.recv(_RECV_BYTES):
            yield from reader.feed(data)
            # A busy engine must not keep the requests' greenlets from running.
            gevent.sleep(0)

    def close(self) -> None:
        """Drop what is queued and close the socket, which also ends `payloads`."""
        if self._writer is not gevent.getcurrent():
            self._writer.kill(block=False)
        self._sock.close()

    def _write(self) -> None:
        try:
            while True:
                self._has_frames.wait()
                while self._frames:
                    data = self._frames.popleft()
                    with gevent.Timeout(self._send_timeout_s):
                        self._sock.sendall(data)
                    self._num_queued_bytes -= len(data)
                self._has_frames.clear()
        except (OSError, gevent.Timeout) as error:
            log.error("the engine does not take our messages: %s", error)
            # The reader sees the end and fails the open requests.
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)
