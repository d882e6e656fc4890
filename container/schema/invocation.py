"""What SageMaker's headers say about an invocation: the form of the answer, the route, the model, the session.

Knows the headers' names and forms; sources are in docs/sagemaker.md. Must not know Flask, bodies or sessions.
"""

import dataclasses
import re
from typing import Protocol

from container.schema.sampling import ModelNotFound
from engine.api import InvalidRequest, ModelInfo, RequestError

_PREFIX = "X-Amzn-SageMaker-"
CUSTOM_ATTRIBUTES = _PREFIX + "Custom-Attributes"
INFERENCE_ID = _PREFIX + "Inference-Id"
SESSION_ID = _PREFIX + "Session-Id"
NEW_SESSION_ID = _PREFIX + "New-Session-Id"
CLOSED_SESSION_ID = _PREFIX + "Closed-Session-Id"
FORWARDED_API = _PREFIX + "Forwarded-Api"
# Both name what should answer; one model without adapters is served here.
TARGETS = (_PREFIX + "Target-Model", _PREFIX + "Adapter-Identifier")

JSON = "application/json"
JSON_LINES = "application/jsonlines"
EVENTS = "text/event-stream"
JSON_LINES_TYPES = frozenset(
    {JSON_LINES, "application/jsonl", "application/x-jsonlines", "application/x-jsonl", "application/x-ndjson"}
)
_WILDCARDS = frozenset({"*/*", "application/*"})
_STREAMING_API = "InvokeEndpointWithResponseStream"
_MAX_ATTRIBUTE_CHARS = 1024
_MAX_SHOWN_CHARS = 128
_ROUTE = re.compile(r"(?:^|[\s,;])route=\"?([^\s,;\"]*)", re.IGNORECASE)
_NOT_PRINTABLE = re.compile(r"[^ -~]")
_QUALITY_0 = re.compile(r";\s*q=0(\.0*)?\s*(;|$)")


class Headers(Protocol):
    """A request's headers, whatever their case."""

    def get(self, key: str, default: str) -> str:
        """The header's value, or the default."""


class NotAcceptable(RequestError):
    """No form of answer that this server has is among those that the client takes."""

    status = 406
    code = "not_acceptable"


@dataclasses.dataclass(frozen=True)
class InvocationHeaders:
    """What the headers ask for.

    route: the path that should answer instead of /invocations; None for none.
    session_id: as sent; empty for none.
    takes_json, takes_lines, takes_events: whether the client takes one JSON value, JSON lines, server-sent events;
        lines and events only if it names them.
    is_stream_call: whether the platform was asked for a stream.
    """

    route: str | None
    session_id: str
    takes_json: bool
    takes_lines: bool
    takes_events: bool
    is_stream_call: bool

    @property
    def prefers_stream(self) -> bool:
        """Whether a body that does not say `stream` is to be streamed."""
        return self.is_stream_call or (self.takes_events and not self.takes_json and not self.takes_lines)

    @property
    def prefers_lines(self) -> bool:
        """Whether a stream is to be JSON lines rather than events."""
        return self.takes_lines and not self.takes_events

    @property
    def wants_one_line(self) -> bool:
        """Whether an answer that is not streamed is to be a JSON line: the client takes nothing else."""
        return self.takes_lines and not self.takes_json


def read_headers(headers: Headers) -> InvocationHeaders:
    """The headers of an invocation. Raises NotAcceptable."""
    accept = headers.get("Accept", "")
    accepted = _accepted(accept)
    is_any = not accept.strip()
    found = InvocationHeaders(
        route=_route(headers.get(CUSTOM_ATTRIBUTES, "")),
        session_id=headers.get(SESSION_ID, "").strip(),
        takes_json=is_any or JSON in accepted or not accepted.isdisjoint(_WILDCARDS),
        takes_lines=not accepted.isdisjoint(JSON_LINES_TYPES),
        takes_events=not accepted.isdisjoint({EVENTS, "text/*"}),
        is_stream_call=headers.get(FORWARDED_API, "").strip() == _STREAMING_API,
    )
    if not (found.takes_json or found.takes_lines or found.takes_events):
        raise NotAcceptable(f"This server answers with {JSON}, {JSON_LINES} or {EVENTS}: accept one of them.")
    return found


def check_targets(headers: Headers, info: ModelInfo) -> None:
    """Raises ModelNotFound where a header names another model than the served one, or an adapter."""
    for header in TARGETS:
        name = headers.get(header, "").strip()
        if name not in ("", info.served_name):
            raise ModelNotFound(
                f"'{_printable(name, _MAX_SHOWN_CHARS)}' of {header} does not exist here; '{info.served_name}' is "
                "served, without adapters.",
                header,
            )


def unknown_route(route: str, known: list[str]) -> InvalidRequest:
    """The refusal of a `route=` that is none of ours."""
    shown = _printable(route, _MAX_SHOWN_CHARS)
    return InvalidRequest(f"The route '{shown}' is not one of {', '.join(known)}.", CUSTOM_ATTRIBUTES)


def custom_attributes(headers: Headers) -> str:
    """The client's own attributes as they come back to it: printable ASCII, as much as the platform lets through."""
    return _printable(headers.get(CUSTOM_ATTRIBUTES, ""), _MAX_ATTRIBUTE_CHARS)


def _accepted(header: str) -> frozenset[str]:
    ranges = (part.strip().lower() for part in header.split(","))
    return frozenset(part.partition(";")[0].strip() for part in ranges if part and not _QUALITY_0.search(part))


def _route(attributes: str) -> str | None:
    match = _ROUTE.search(attributes)
    return None if match is None else match[1].rstrip("/")


def _printable(text: str, max_chars: int) -> str:
    return _NOT_PRINTABLE.sub("", text)[:max_chars]
