"""From an HTTP request to the bytes of its body, within the limits.

Knows WSGI's input and gunicorn's parse errors. Must not know what the fields mean.
"""

import re
import time

import gevent
from flask import Request
from gunicorn.http.errors import NoMoreData, ParseException

from engine.api import DeadlineExceeded, InvalidRequest, RequestAborted, RequestError

_READ_BYTES = 256 * 1024
# A piece of a chunked body may be as many chunks, each with kilobytes of extensions: as long as it takes, nobody else
# runs. So pieces are as large as what is read in a moment.
_CHUNKED_BYTES = (64, 4 * 1024)
_CHUNKED_PIECE_S = 0.005
# A client that sends nothing for so long in the middle of its body has left.
_READ_TIMEOUT_S = 60.0
_UTF8 = r'(\s*;\s*charset="?utf-?8"?)?\s*;?'
JSON_BODY = re.compile(r"application/(json|[\w.-]+\+json)" + _UTF8, re.IGNORECASE)
JSON_LINES_BODY = re.compile(r"application/(x-)?(jsonlines|jsonl|ndjson)" + _UTF8, re.IGNORECASE)
JSON_OR_LINES_BODY = re.compile(f"({JSON_BODY.pattern})|({JSON_LINES_BODY.pattern})", re.IGNORECASE)

# The values of each header with which the body is what it is.
_PLAIN_CODINGS = {
    "Content-Encoding": frozenset({"", "identity"}),
    "Transfer-Encoding": frozenset({"", "identity", "chunked"}),
}


class BodyTooLarge(RequestError):
    """The body is longer than this server takes."""

    status = 413
    code = "body_too_large"


class UnsupportedMediaType(RequestError):
    """The body is not declared as JSON."""

    status = 415
    code = "unsupported_media_type"


def is_json_lines(request: Request) -> bool:
    """Whether the body is declared as JSON lines."""
    return JSON_LINES_BODY.fullmatch(request.headers.get("Content-Type", "").strip()) is not None


def read_body(request: Request, types: re.Pattern[str], max_bytes: int, deadline: float) -> bytes:
    """The body, read until `deadline` (monotonic), if its Content-Type is one of `types`. A missing one counts as JSON.

    Raises UnsupportedMediaType, BodyTooLarge (before anything is read, where Content-Length tells), InvalidRequest, or
    DeadlineExceeded when the client is too slow.
    """
    content_type = request.headers.get("Content-Type", "").strip()
    if content_type and not types.fullmatch(content_type):
        lines = "" if types is JSON_BODY else ", or application/jsonlines for a batch of records"
        raise UnsupportedMediaType(f"The body must be JSON in UTF-8: send Content-Type: application/json{lines}.")
    for header, plain in _PLAIN_CODINGS.items():
        codings = {coding.strip().lower() for coding in request.headers.get(header, "").split(",")}
        if not codings <= plain:
            raise UnsupportedMediaType(f"A compressed body is not supported here: send no {header}.")
    return read_bytes(request, max_bytes, deadline)


def read_bytes(request: Request, max_bytes: int, deadline: float) -> bytes:
    """The whole body, whatever it is declared as. Raises BodyTooLarge, RequestAborted, or as above."""
    declared = request.content_length
    if declared is not None and declared > max_bytes:
        raise _too_large(max_bytes)
    stream = request.environ["wsgi.input"]
    pieces = bytearray()
    limit, step = (max_bytes, _CHUNKED_BYTES[0]) if declared is None else (declared, _READ_BYTES)
    begun = time.monotonic()
    try:
        # One byte over the limit is enough to know.
        while piece := _read_piece(stream, min(step, limit + 1 - len(pieces)), deadline):
            pieces += piece
            if len(pieces) > max_bytes:
                raise _too_large(max_bytes)
            # Reading does not wait, and so lets nobody else run, while there is something to read.
            gevent.sleep(0)
            if (now := time.monotonic()) > deadline:
                raise DeadlineExceeded("The body did not arrive in time.")
            if declared is None:
                least, most = _CHUNKED_BYTES
                step = min(2 * step, most) if now - begun < _CHUNKED_PIECE_S else max(step // 4, least)
            begun = now
    except (NoMoreData, OSError) as error:
        raise RequestAborted("The client left in the middle of its body.") from error
    except ParseException as error:
        raise InvalidRequest("The body's transfer coding is malformed.") from error
    if declared is not None and len(pieces) < declared:
        raise RequestAborted("The client left in the middle of its body.")
    return bytes(pieces)


def _read_piece(stream: object, num_bytes: int, deadline: float) -> bytes:
    if num_bytes <= 0:
        return b""
    # gevent takes 0 for "at once".
    timeout_s = min(_READ_TIMEOUT_S, max(0.0, deadline - time.monotonic()))
    with gevent.Timeout(timeout_s, DeadlineExceeded("The body did not arrive in time.")):
        piece: bytes = stream.read(num_bytes)  # type: ignore[attr-defined]
        return piece


def _too_large(max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"The request body is larger than the limit of {max_bytes / 2**20:g} MiB.")
