"""SageMaker's routes: /ping, /invocations and /execution-parameters.

`ping` and `invocations` are the two places at which code of the model artifact may stand in front of ours.
Knows how a body and its headers tell what is asked. Must not know the APIs behind it.
"""

from collections.abc import Mapping

import msgspec
from flask import Response, request

from container.config import ServerConfig
from container.request_body import JSON_OR_LINES_BODY, is_json_lines
from container.responses import JSON_LINES, SERVER_SENT_EVENTS, StreamFormat, json_response
from container.routes import chat, completions, generate, records, sessions
from container.routes.serving import Serving
from container.schema.body import NOT_SERVED, REQUEST_TYPE, split
from container.schema.fields import RawBody
from container.schema.invocation import (
    CUSTOM_ATTRIBUTES,
    INFERENCE_ID,
    InvocationHeaders,
    check_targets,
    custom_attributes,
    read_headers,
    unknown_route,
)
from engine.api import InvalidRequest

_RETRY_AFTER_S = "2"

_ANSWERS = {"messages": chat.answer, "prompt": completions.answer, "inputs": generate.answer}
_ROUTES = {"/v1/chat/completions": chat.answer, "/v1/completions": completions.answer}


def ping(serving: Serving) -> Response:
    """200 when requests can be served, else 503 with the stage; from what the engine last said, without asking it."""
    health = serving.engine.health()
    if health.is_ready:
        return _empty(200)
    response = json_response({"status": health.state, "stage": health.stage}, 503)
    response.headers["Retry-After"] = _RETRY_AFTER_S
    return response


def invocations(serving: Serving) -> Response:
    """One request, a turn of a session, the opening or closing of one, or a batch of records. Raises a ServingError."""
    headers = read_headers(request.headers)
    serving = serving.for_request()
    body = serving.raw_body(JSON_OR_LINES_BODY)
    if not body or body.isspace():
        return sessions.begin(serving) if headers.session_id == sessions.NEW_SESSION else _empty(204)
    if is_json_lines(request) or serving.config.batch_transform:
        return _answer_records(serving, headers, body)
    raw = split(body)
    if REQUEST_TYPE in raw:
        return sessions.change(serving, raw, headers.session_id)
    serving = serving.with_call(stream_format=_stream_format(serving.config, headers))
    with sessions.turn(serving, headers.session_id) as turn:
        response = _answer(turn.serving, _with_stream(raw) if headers.prefers_stream else raw, headers)
    turn.mark(response)
    if not response.is_streamed and headers.wants_one_line:
        response.set_data(response.get_data() + b"\n")
        response.content_type = JSON_LINES.content_type
    return response


def execution_parameters(config: ServerConfig) -> Response:
    """What batch transform is to do where its job does not say."""
    return json_response(
        {
            "MaxConcurrentTransforms": config.batch_max_concurrent_transforms,
            "BatchStrategy": config.batch_strategy,
            "MaxPayloadInMB": config.batch_max_payload_mb,
        }
    )


def echo_headers(response: Response) -> Response:
    """What a client marks its invocation with comes back to it, unless the answer has its own."""
    for name, value in (
        (CUSTOM_ATTRIBUTES, custom_attributes(request.headers)),
        (INFERENCE_ID, response.headers.get("X-Request-Id", "") if INFERENCE_ID in request.headers else ""),
    ):
        if value:
            response.headers.setdefault(name, value)
    return response


def _stream_format(config: ServerConfig, headers: InvocationHeaders) -> StreamFormat:
    """Events, unless the client takes lines only; LMI's clients get lines, chats too, unless they name events."""
    is_lines = headers.prefers_lines or (config.inputs_form == "lmi" and not headers.takes_events)
    return JSON_LINES if is_lines else SERVER_SENT_EVENTS


def _empty(status: int) -> Response:
    """A response without a body, and so without the type that Flask would name."""
    response = Response(status=status)
    del response.headers["Content-Type"]
    return response


def _answer_records(serving: Serving, headers: InvocationHeaders, body: bytes) -> Response:
    if headers.session_id:
        raise InvalidRequest("A batch of records cannot be a turn of a session.", "session_id")
    if not (headers.takes_lines or headers.takes_json):
        raise InvalidRequest("A batch of records is answered with JSON lines, not with a stream of events.", "Accept")
    _check_targets(serving, headers)

    def answer(serving: Serving, raw: RawBody) -> Response:
        for name in ("stream", REQUEST_TYPE):
            if name in raw and bytes(memoryview(raw[name])[:5]) not in (b"false", b"null"):
                raise InvalidRequest(f"'{name}' is not possible in a batch of records.", name)
        return _by_route(serving, raw, headers.route)

    # What batch transform sends without calling it lines may be one record that takes several.
    lines = records.lines(body) if is_json_lines(request) or records.is_lines(body) else iter((body,))
    return records.answer(serving, lines, answer)


def _answer(serving: Serving, raw: RawBody, headers: InvocationHeaders) -> Response:
    _check_targets(serving, headers)
    return _by_route(serving, raw, headers.route)


def _check_targets(serving: Serving, headers: InvocationHeaders) -> None:
    if headers.route is not None and headers.route not in (*_ROUTES, "/invocations"):
        raise unknown_route(headers.route, list(_ROUTES))
    check_targets(request.headers, serving.engine.model().info)


def _by_route(serving: Serving, raw: RawBody, route: str | None) -> Response:
    """The answer of the route that was asked for, or that the fields tell: each API has one that only it has."""
    if route in _ROUTES:
        return _ROUTES[route](serving, raw)
    present = [name for name in _ANSWERS if name in raw]
    # Null asks for nothing; where there is nothing else, its own route says that it is missing.
    asked = [name for name in present if not _is_null(raw[name])]
    for name in asked or present:
        return _ANSWERS[name](serving, raw)
    for name, what in NOT_SERVED.items():
        if name in raw:
            raise InvalidRequest(
                f"'{name}' asks for {what}, which is not served here: this model generates text.", name
            )
    raise InvalidRequest("The body must have 'messages' (chat), 'prompt' (completion) or 'inputs' (TGI's generate).")


def _with_stream(raw: Mapping[str, msgspec.Raw]) -> RawBody:
    """The body with the stream that its headers ask for, unless it says itself."""
    if "stream" in raw and not _is_null(raw["stream"]):
        return raw
    return {**raw, "stream": msgspec.Raw(b"true")}


def _is_null(value: msgspec.Raw) -> bool:
    return bytes(memoryview(value)[:4]) == b"null"
