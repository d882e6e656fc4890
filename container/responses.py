"""HTTP responses: JSON, OpenAI's error body, and streams that always stop their generation.

Knows Flask responses and ServingError. Must not know any schema.
"""

import dataclasses
import logging
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from flask import Response

from engine.api import EngineError, RequestAborted, ServingError

log = logging.getLogger(__name__)

# What OpenAI's streams end with; in JSON lines the end of the body says it.
DONE = object()
_TYPES = {404: "not_found_error", 429: "rate_limit_error", 500: "server_error", 503: "service_unavailable_error"}


def json_response(body: Any, status: int = 200) -> Response:
    """`body` as compact JSON."""
    return Response(msgspec.json.encode(body), status=status, content_type="application/json")


def error_body(status: int, message: str, param: str | None, code: str | None) -> dict[str, Any]:
    """OpenAI's error object."""
    kind = _TYPES.get(status, "timeout_error" if status == 504 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_response(error: ServingError) -> Response:
    """The response for an error that came before the first byte."""
    response = json_response(error_body(error.status, error.message, error.param, error.code), error.status)
    if error.retry_after_s is not None:
        response.headers["Retry-After"] = str(error.retry_after_s)
    return response


def log_error(error: ServingError, request_id: str) -> None:
    """The caller's faults at INFO, ours at ERROR; the traceback is in the engine's log, where it was raised."""
    if isinstance(error, EngineError):
        log.error("request %s: %s: %s", request_id, error.code, error.message)
    else:
        log.info("request %s: %d %s: %s", request_id, error.status, error.code, error.message)


@dataclasses.dataclass(frozen=True)
class StreamFormat:
    """How the parts of a stream are written. done: what stands for DONE."""

    content_type: str
    prefix: bytes
    suffix: bytes
    done: bytes

    def write(self, part: Any) -> bytes:
        """One part: a JSON value, or DONE."""
        return self.done if part is DONE else self.prefix + msgspec.json.encode(part) + self.suffix


SERVER_SENT_EVENTS = StreamFormat("text/event-stream; charset=utf-8", b"data: ", b"\n\n", b"data: [DONE]\n\n")
JSON_LINES = StreamFormat("application/jsonlines", b"", b"\n", b"")


class EventStream:
    """The body of a streaming response: parts, each written in `format` as it comes.

    A class rather than a generator, because a generator that was never started runs no `finally`: `on_close` runs once
    however the response ends, whether the client read all of it, left, or never came to the first byte.
    """

    def __init__(
        self, parts: Iterator[Any], on_close: Callable[[], None], request_id: str, stream_format: StreamFormat
    ) -> None:
        """Waits for the first part, so that an error before it can still become a status. Raises that error."""
        self._on_close = on_close
        self._request_id = request_id
        self._parts = parts
        self.format = stream_format
        try:
            self._first = self.format.write(next(parts))
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield self._first
            yield from map(self.format.write, self._parts)
        except ServingError as error:
            log_error(error, self._request_id)
            if not isinstance(error, RequestAborted):
                yield self.format.write(error_body(error.status, error.message, error.param, error.code))

    def close(self) -> None:
        """Stop the generation; called by the WSGI server at the end of the response."""
        self._on_close()


def event_stream_response(stream: EventStream) -> Response:
    """The response around a stream; no proxy may collect or keep it."""
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return Response(stream, content_type=stream.format.content_type, headers=headers)
