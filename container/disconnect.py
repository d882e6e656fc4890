"""Notice that a client has left while its request is being worked on.

Neither Flask nor gunicorn cancels a handler when its client closes the connection. So a greenlet peeks at the socket:
the end of the stream, or a reset, means that the client is gone. Peeking leaves a pipelined request where it is.

Knows the connection's gevent socket. Must not know requests or the engine. Under TLS nothing can be peeked: there the
failed write and the deadline must do.
"""

import contextlib
import select
import ssl
from collections.abc import Callable
from typing import Any

import gevent
from gevent import monkey, socket

# With data in the way (a pipelined request) peeking shows that for ever; then the socket's state is asked for.
_POLL_S = 0.25


class DisconnectWatch:
    """Calls `on_disconnect`, once, from its own greenlet, when the client leaves.

    Start it only after the whole body has been read: gevent allows one reader per socket. Stop it before the connection
    is used for the next request.
    """

    def __init__(self, sock: Any | None, on_disconnect: Callable[[], None]) -> None:
        """`sock` is environ["gunicorn.socket"]; with None, as under a test client, nothing is watched."""
        self._on_disconnect = on_disconnect
        self._greenlet: gevent.Greenlet | None = None
        if sock is not None and not isinstance(sock, ssl.SSLSocket):
            self._greenlet = gevent.spawn(self._watch, sock)

    def stop(self) -> None:
        """Watch no more; when this returns, nobody reads from the socket. May be called twice."""
        if self._greenlet is not None and self._greenlet is not gevent.getcurrent():
            self._greenlet.kill(block=True, timeout=1)

    def _watch(self, sock: Any) -> None:
        try:
            data = sock.recv(1, socket.MSG_PEEK)
        except OSError:
            data = b""
        if data:
            _wait_for_hangup(sock.fileno())
        self._on_disconnect()


def hang_up(sock: Any | None) -> None:
    """End the connection without a word: whatever is written after this goes nowhere."""
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)


def _wait_for_hangup(fileno: int) -> None:
    poll = monkey.get_original("select", "poll")()
    poll.register(fileno, select.POLLRDHUP)
    while not poll.poll(0):
        gevent.sleep(_POLL_S)
