"""The supervisor's view of one engine process: what it says on its socket, and whether that is a sign of life.

Knows EngineStatus and clocks. Must not know processes or signals: the supervisor decides what to do.
"""

import logging
import socket
import time

import msgspec

from engine.api import EngineStatus, FrameError, FrameReader, decode_engine_message

log = logging.getLogger(__name__)

# A stale stamp counts only if it is still stale this much later: after this process itself was stopped, it must first
# read what the engine has sent meanwhile.
_CONFIRM_S = 1.0
_RECV_BYTES = 65536
_END_AFTER_FAILURE_S = 10.0


class EngineMonitor:
    """Call `poll` a few times a second; it never blocks."""

    def __init__(self, socket_path: str, stall_limit_s: float, start_timeout_s: float) -> None:
        self._socket_path = socket_path
        self._stall_limit_s = stall_limit_s
        self._start_timeout_s = start_timeout_s
        self._started = time.monotonic()
        self._sock: socket.socket | None = None
        self._frames = FrameReader()
        self._status: EngineStatus | None = None
        self._was_ready = False
        self._stale_since: float | None = None

    @property
    def was_ready(self) -> bool:
        """Whether the engine has ever been ready, so that requests may run."""
        return self._was_ready

    def poll(self) -> str | None:
        """What is wrong with the engine, for people; None while nothing is."""
        if self._sock is None:
            self._connect()
        if self._sock is not None:
            self._read(self._sock)
        now = time.monotonic()
        if self._status is not None and self._status.state == "failed":
            # It ends by itself, with an exit code that says whether another start would help.
            is_late = now - self._status.stamp > _END_AFTER_FAILURE_S
            return "the engine failed and did not end" if is_late else None
        if not self._was_ready:
            is_late = now - self._started > self._start_timeout_s
            return f"the engine was not ready within {self._start_timeout_s:g} s" if is_late else None
        if self._status is None or now - self._status.stamp <= self._stall_limit_s:
            self._stale_since = None
            return None
        if self._stale_since is None:
            self._stale_since = now
        if now - self._stale_since < _CONFIRM_S:
            return None
        return f"the engine has given no sign of life for {now - self._status.stamp:.0f} s"

    def close(self) -> None:
        """Close the connection."""
        if self._sock is not None:
            self._sock.close()
        self._sock = None

    def _connect(self) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            sock.connect(self._socket_path)
        except OSError:
            # Not bound yet, or its backlog is full; the next poll tries again.
            sock.close()
            return
        self._sock, self._frames = sock, FrameReader()

    def _read(self, sock: socket.socket) -> None:
        try:
            while data := sock.recv(_RECV_BYTES):
                for payload in self._frames.feed(data):
                    message = decode_engine_message(payload)
                    if isinstance(message, EngineStatus):
                        self._note(message)
        except BlockingIOError:
            return
        except ConnectionError:
            pass  # its process has ended, as our caller will see
        except (OSError, FrameError, msgspec.MsgspecError) as error:
            log.warning("the connection to the engine broke: %s", error)
        self.close()

    def _note(self, status: EngineStatus) -> None:
        self._status = status
        if status.state == "ready" and not self._was_ready:
            self._was_ready = True
            log.info("the engine is ready, %.1f s after its start", time.monotonic() - self._started)
