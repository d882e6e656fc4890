"""The engine's end of the Unix socket: connections in, a queue of events for the engine thread, messages out.

One accept thread, and per connection a reader and a writer thread, so that the engine thread never waits for a socket.
Knows frames and connections. Must not know what a request is, or how it is served.
"""

import contextlib
import dataclasses
import logging
import queue
import socket
import threading
from pathlib import Path

import msgspec

from engine.api import (
    EngineMessage,
    EngineStatus,
    FrameError,
    FrameReader,
    WorkerMessage,
    decode_worker_message,
    encode_message,
    frame,
)

log = logging.getLogger(__name__)

# A worker merges what its clients do not read, so it always reads; one that is this far behind hangs.
MAX_OUTBOX_MESSAGES = 20_000
READ_BYTES = 1 << 18
_BACKLOG = 64


@dataclasses.dataclass(frozen=True, slots=True)
class Received:
    """A message of a client."""

    client_id: int
    message: WorkerMessage


@dataclasses.dataclass(frozen=True, slots=True)
class Disconnected:
    """The client's connection has ended; nothing of it follows."""

    client_id: int


Event = Received | Disconnected | None


class _Connection:
    """One client: its socket, and the messages that wait to be written."""

    def __init__(self, client_id: int, sock: socket.socket) -> None:
        self.client_id = client_id
        self.socket = sock
        self.outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()

    def send(self, data: bytes) -> None:
        if self.outbox.qsize() >= MAX_OUTBOX_MESSAGES:
            log.error("connection %d does not read: closing it", self.client_id)
            self.close()
            return
        self.outbox.put(data)

    def close(self) -> None:
        # Shutting down wakes the reader, which reports the end; closing alone would not.
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)


class EngineServer:
    """Listens on a Unix stream socket in a private directory. Client ids are never reused.

    `events` holds what clients sent, in order per client, and a Disconnected when one has gone. A None in it only wakes
    the engine thread.
    """

    def __init__(self, path: Path) -> None:
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._path = path
        self._connections: dict[int, _Connection] = {}
        self._lock = threading.Lock()
        self._last_status: bytes | None = None
        path.unlink(missing_ok=True)  # left behind by an engine that was killed
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        path.chmod(0o600)
        self._listener.listen(_BACKLOG)
        threading.Thread(target=self._accept, name="accept", daemon=True).start()

    def wake(self) -> None:
        """Wake the engine thread; safe in a signal handler."""
        self.events.put(None)

    def send(self, client_id: int, message: EngineMessage) -> None:
        """Queue a message for one client; one that has gone is ignored."""
        with self._lock:
            connection = self._connections.get(client_id)
        if connection is not None:
            connection.send(frame(encode_message(message)))

    def publish(self, status: EngineStatus) -> None:
        """Send the status to every client, and to every later one when it connects."""
        data = frame(encode_message(status))
        with self._lock:
            self._last_status = data
            connections = list(self._connections.values())
        for connection in connections:
            connection.send(data)

    def flush(self, timeout_s: float) -> None:
        """Wait until what was queued before is written, or the time is over; then close everything."""
        with self._lock:
            connections = list(self._connections.values())
        for connection in connections:
            connection.outbox.put(None)
        writers = [t for t in threading.enumerate() if t.name.startswith("writer-")]
        for thread in writers:
            thread.join(timeout_s / max(1, len(writers)))
        self._listener.close()
        self._path.unlink(missing_ok=True)

    def _accept(self) -> None:
        client_id = 0
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:  # closed: the engine is ending
                return
            client_id += 1
            connection = _Connection(client_id, sock)
            with self._lock:
                # Both under the lock, so that no status published in between is missed.
                if self._last_status is not None:
                    connection.send(self._last_status)
                self._connections[client_id] = connection
            for target, role in ((self._read, "reader"), (self._write, "writer")):
                threading.Thread(target=target, args=(connection,), name=f"{role}-{client_id}", daemon=True).start()

    def _read(self, connection: _Connection) -> None:
        frames = FrameReader()
        try:
            while data := connection.socket.recv(READ_BYTES):
                for payload in frames.feed(data):
                    self.events.put(Received(connection.client_id, decode_worker_message(payload)))
        except OSError:
            pass  # reset by a worker that died: the same as its end
        except (FrameError, msgspec.DecodeError) as error:  # a ValidationError is a DecodeError
            log.error("connection %d sent a message that is none of ours: %s", connection.client_id, error)
        with self._lock:
            del self._connections[connection.client_id]
        connection.close()
        connection.outbox.put(None)
        self.events.put(Disconnected(connection.client_id))

    def _write(self, connection: _Connection) -> None:
        with contextlib.suppress(OSError):
            while (data := connection.outbox.get()) is not None:
                connection.socket.sendall(data)
        connection.close()
        connection.socket.close()
