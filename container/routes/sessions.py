"""SageMaker's stateful sessions: opened and closed by a body's `requestType`, or opened by the header NEW_SESSION.

The engine holds them, so any worker can answer. Knows both of AWS's header conventions: its containers disagree on
which header tells a new session's id, so both do. Must not know what a session keeps.
"""

import contextlib
import dataclasses
import datetime
from collections.abc import Iterator

import msgspec
from flask import Response

from container.routes.serving import Serving
from container.schema.body import REQUEST_TYPE
from container.schema.fields import FieldRule, RawBody, read
from container.schema.invocation import CLOSED_SESSION_ID, NEW_SESSION_ID, SESSION_ID
from engine.api import InvalidRequest, RequestError, ServingError, SessionAnswer

NEW_SESSION = "NEW_SESSION"
CLOSE = "CLOSE"
_RULE = FieldRule(neutral={}, without_effect=frozenset())
# The platform takes no longer id; ours are shorter.
_MAX_ID_CHARS = 256


class CloseFailed(RequestError):
    """A session was to be closed and not named."""

    status = 424
    code = "session_not_closed"


class _Body(msgspec.Struct):
    requestType: str  # noqa: N815  # the field's name on the wire


@dataclasses.dataclass
class Turn:
    """A request within a session, or within none. serving: for its answer. opened: the session that it has opened."""

    serving: Serving
    opened: SessionAnswer | None = None

    def mark(self, response: Response) -> None:
        """Tell the client of the session that was opened."""
        if self.opened is not None:
            _tell(response, self.opened)


def begin(serving: Serving) -> Response:
    """Open a session, without a turn in it. Raises a ServingError."""
    _check_enabled(serving)
    opened = serving.engine.open_session(serving.config.session_expiration_s)
    response = Response(f"Session {opened.session_id} created", content_type="text/plain")
    _tell(response, opened)
    return response


def change(serving: Serving, raw: RawBody, session_id: str) -> Response:
    """Open a session, or close the one of the header. Raises a ServingError."""
    kind = read(raw, _Body, _RULE).requestType
    if kind not in (NEW_SESSION, CLOSE):
        raise InvalidRequest(f"'{REQUEST_TYPE}' must be {NEW_SESSION} or {CLOSE}.", REQUEST_TYPE)
    if kind == NEW_SESSION:
        return begin(serving)
    _check_enabled(serving)
    if session_id in ("", NEW_SESSION):
        raise CloseFailed(f"Failed to close session: invalid session_id: {session_id or None}", "session_id")
    closed = serving.engine.close_session(session_id[:_MAX_ID_CHARS])
    response = Response(f"Session {closed.session_id} closed", content_type="text/plain")
    response.headers[CLOSED_SESSION_ID] = closed.session_id
    return response


@contextlib.contextmanager
def turn(serving: Serving, session_id: str) -> Iterator[Turn]:
    """The turn that the header asks for: of no session, of an open one, or the first of a new one.

    Where the first one fails, nobody learns of the new session: it is closed again. Raises a ServingError.
    """
    if not session_id:
        yield Turn(serving)
        return
    _check_enabled(serving)
    if session_id != NEW_SESSION:
        yield Turn(serving.with_call(session_id=session_id[:_MAX_ID_CHARS]))
        return
    opened = serving.engine.open_session(serving.config.session_expiration_s)
    try:
        yield Turn(serving.with_call(session_id=opened.session_id), opened)
    except ServingError:
        with contextlib.suppress(ServingError):
            serving.engine.close_session(opened.session_id)
        raise


def _check_enabled(serving: Serving) -> None:
    if not serving.config.enable_sessions:
        raise InvalidRequest("Invalid payload. stateful sessions not enabled", REQUEST_TYPE)


def _tell(response: Response, opened: SessionAnswer) -> None:
    expires = datetime.datetime.fromtimestamp(opened.expires_s, datetime.UTC)
    value = f"{opened.session_id}; Expires={expires:%Y-%m-%dT%H:%M:%SZ}"
    for name in (NEW_SESSION_ID, SESSION_ID):
        response.headers[name] = value
