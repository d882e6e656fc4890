"""gunicorn's gevent worker, with a quick and clean end.

gunicorn waits for idle keep-alive connections as if they were requests, for as long as they may stay idle. This worker
knows which connections are between two requests, and hangs up on those at once when it is told to stop. And what
gunicorn itself refuses, since it is no HTTP, gets an error body like every other.

Knows gunicorn's worker. Must not know the application.
"""

import contextlib
import json
import signal
import socket
import subprocess
from typing import Any

import gevent
import gevent.subprocess
from gevent import monkey
from gunicorn.workers.ggevent import GeventWorker

_ERROR_SEND_S = 5.0
_LATE_REQUEST_S = 1.0
# A client that has not read what was sent to it for so long is gone, or means to hold what its answer takes.
_UNREAD_LIMIT_S = 120


class _Page:
    """Takes gunicorn's HTML error page in place of the client's socket, for its status line."""

    def __init__(self) -> None:
        self.status = 0
        self.reason = ""

    def gettimeout(self) -> float:
        return 0.0

    def sendall(self, data: bytes) -> None:
        _, status, self.reason = data.split(b"\r\n", 1)[0].decode("latin-1").split(" ", 2)
        self.status = int(status)


class DrainingWorker(GeventWorker):  # type: ignore[misc]  # gunicorn has no types
    """A gevent worker that finishes its requests and drops its idle connections."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._idle: set[Any] = set()

    def patch(self) -> None:
        """Make the standard library cooperative, but for `subprocess`.

        gevent's waits for children in the main thread only; ours are started in native threads, by custom code and for
        its requirements.
        """
        super().patch()
        for name in gevent.subprocess.__implements__:
            setattr(subprocess, name, monkey.get_original("subprocess", name))

    def init_process(self) -> None:
        """Start up. Until our own handlers stand, a signal would go to the master's, which we inherited: lost."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, signal.SIG_DFL)
        super().init_process()

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        """Serve one connection."""
        self._idle.add(client)
        with contextlib.suppress(OSError):
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNREAD_LIMIT_S * 1000)
        try:
            super().handle(listener, client, addr)
        finally:
            self._idle.discard(client)

    def timeout_ctx(self) -> Any:
        """How long a connection may wait for its next request; briefly, for one that came with the order to stop."""
        return super().timeout_ctx() if self.alive else gevent.Timeout(_LATE_REQUEST_S, False)

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> None:
        """Serve one request of a connection."""
        self._idle.discard(sock)
        super().handle_request(listener_name, req, sock, addr)
        if not self.alive:
            raise StopIteration
        self._idle.add(sock)

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Answer what is no valid HTTP: gunicorn's status, our body."""
        page = _Page()
        super().handle_error(req, page, addr, exc)
        if page.status:
            kind = "invalid_request_error" if page.status < 500 else "server_error"
            error = {"message": page.reason, "type": kind, "param": None, "code": "bad_http"}
            body = json.dumps({"error": error})
            head = (
                f"HTTP/1.1 {page.status} {page.reason}\r\nConnection: close\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\n\r\n"
            )
            with contextlib.suppress(OSError), gevent.Timeout(_ERROR_SEND_S, False):
                client.sendall((head + body).encode("latin-1"))

    def handle_exit(self, sig: int, frame: Any) -> None:
        """SIGTERM: stop accepting, finish what runs, hang up on the idle."""
        super().handle_exit(sig, frame)
        gevent.spawn(self._hang_up_on_idle)

    def _hang_up_on_idle(self) -> None:
        for client in list(self._idle):
            try:
                # A request that has already arrived is still read and served.
                client.shutdown(socket.SHUT_RD)
            except OSError:
                self._idle.discard(client)
