"""Tells the web workers how far the download is, on the very socket where they look for the engine.

While a model is downloaded there is no engine; the downloading process listens on its socket and says, in the engine's
own words, that it is starting and at which stage. So the workers need to know one socket and one kind of message, and
/ping shows the download as it shows every other stage. When this process ends its connections end, and the workers
connect again: to the engine.

Knows EngineStatus and its frames. Must not know what is downloaded.
"""

import contextlib
import os
import socket
import threading
import time
from pathlib import Path

from engine.api import EngineStatus, encode_message, frame

_REPEAT_S = 1.0
_SEND_TIMEOUT_S = 1.0


class StatusPublisher:
    """Listens from its construction on, until the process ends."""

    def __init__(self, path: Path) -> None:
        self._stage = "downloading the model"
        self._changed = threading.Event()
        self._lock = threading.Lock()
        self._connections: list[socket.socket] = []
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        path.chmod(0o600)
        self._listener.listen()
        for run in (self._accept, self._repeat):
            threading.Thread(target=run, daemon=True).start()

    def publish(self, stage: str) -> None:
        """Tell everyone, now and later ones when they connect. Does not block."""
        self._stage = stage
        self._changed.set()

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            connection.settimeout(_SEND_TIMEOUT_S)
            with self._lock:
                self._connections.append(connection)
            self._changed.set()

    def _repeat(self) -> None:
        while True:
            self._changed.wait(_REPEAT_S)
            self._changed.clear()
            status = EngineStatus(state="starting", stage=self._stage, stamp=time.monotonic(), pid=os.getpid())
            data = frame(encode_message(status))
            with self._lock:
                connections = list(self._connections)
            for connection in connections:
                try:
                    connection.sendall(data)
                except OSError:
                    # It has gone, or does not read: it may connect again.
                    with contextlib.suppress(OSError):
                        connection.close()
                    with self._lock:
                        self._connections.remove(connection)
