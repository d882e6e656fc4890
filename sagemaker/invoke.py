"""`invoke`: one request to an endpoint, its answer to the terminal.

Knows the three ways to call an endpoint. Must not know boto3.
"""

import codecs
import dataclasses
import json
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sagemaker.answers import AnswerError, stream_text, text_of
from sagemaker.calls import Call, ToolError, checked_name, checked_s3_uri
from sagemaker.deploy import COMMAND, Tool

MAX_INLINE_ASYNC_BYTES = 128_000
ASYNC_INVOCATION_TIMEOUT_S = 3600
# Small answers come at once; what takes long is asked for less often.
ASYNC_POLL_INTERVAL_S = (0.2, 5.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """One invocation. headers: InvokeEndpoint's optional parameters by their names ("SessionId": …)."""

    endpoint: str
    body: bytes
    content_type: str = "application/json"
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    input_location: str | None = None


def chat_body(prompt: str, *, system: str | None, max_tokens: int, temperature: float | None, stream: bool) -> bytes:
    """A chat of one turn in the OpenAI API's form."""
    messages = [{"role": "user", "content": prompt}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    body: dict[str, Any] = {"messages": messages, "max_tokens": max_tokens}
    if temperature is not None:
        body["temperature"] = temperature
    if stream:
        body["stream"] = True
    return json.dumps(body, ensure_ascii=False).encode()


def plain_call(request: Request) -> Call:
    """InvokeEndpoint."""
    return Call("sagemaker-runtime", "InvokeEndpoint", {**_common(request), "Body": request.body})


def stream_call(request: Request) -> Call:
    """InvokeEndpointWithResponseStream. Raises ToolError for what this call does not have."""
    if request.headers.get("SessionId") == "NEW_SESSION" or "TargetModel" in request.headers:
        raise ToolError("a stream neither opens a session nor names a target model: leave --stream")
    return Call("sagemaker-runtime", "InvokeEndpointWithResponseStream", {**_common(request), "Body": request.body})


def async_call(request: Request) -> Call:
    """InvokeEndpointAsync, with the body in it or with its place in S3. Raises ToolError for what it does not have."""
    allowed = ("Accept", "CustomAttributes", "InferenceId")
    if refused := sorted(set(request.headers) - set(allowed)):
        raise ToolError(f"an asynchronous call has no {', '.join(refused)}: leave these")
    parameters = {**_common(request), "InvocationTimeoutSeconds": ASYNC_INVOCATION_TIMEOUT_S}
    if request.input_location is not None:
        return Call(
            "sagemaker-runtime",
            "InvokeEndpointAsync",
            {**parameters, "InputLocation": checked_s3_uri(request.input_location, "input location")},
        )
    if len(request.body) > MAX_INLINE_ASYNC_BYTES:
        raise ToolError(
            f"an asynchronous body over {MAX_INLINE_ASYNC_BYTES} bytes must lie in S3: upload it, and give "
            "--input-location s3://…"
        )
    return Call("sagemaker-runtime", "InvokeEndpointAsync", {**parameters, "Body": request.body})


def _common(request: Request) -> dict[str, Any]:
    checked_name(request.endpoint, "endpoint name")
    return {"EndpointName": request.endpoint, "ContentType": request.content_type, **request.headers}


def invoke(tool: Tool, request: Request, write: Callable[[str], None], *, raw: bool) -> None:
    """Print the answer's text, or with raw its body; then what the endpoint says beside it. Raises ToolError."""
    answer = tool.aws.run(plain_call(request))
    body = answer["Body"].read()
    write(body.decode("utf-8", "replace") if raw else text_of(body))
    write("\n")
    for field, words in (("NewSessionId", "session"), ("ClosedSessionId", "closed session")):
        if value := answer.get(field):
            tool.say(f"{words}: {value}")
    if session := answer.get("NewSessionId"):
        session_id = session.partition(";")[0]
        # Without the address the next turn would go to another endpoint than the one that holds the session.
        url = f" --endpoint-url {tool.aws.endpoint_url}" if tool.aws.endpoint_url else ""
        tool.say(f"next: {COMMAND} invoke {request.endpoint} 'And then?' --session-id {session_id}{url}")


def invoke_stream(tool: Tool, request: Request, write: Callable[[str], None], *, raw: bool) -> None:
    """Print the text as it comes. Raises ToolError, also for an error within the stream."""
    parts = _parts(tool, stream_call(request))
    began = False
    try:
        # A part may end within a character.
        pieces = codecs.iterdecode(parts, "utf-8", "replace") if raw else stream_text(parts)
        for piece in pieces:
            write(piece)
            began = True
    except ToolError:
        # The line that the answer has begun ends here; the error stands on its own.
        if began:
            write("\n")
        raise
    except AnswerError as error:
        write("\n")
        raise ToolError(f"the container broke off: {error} (see `{COMMAND} logs {request.endpoint}`)") from error
    write("\n")


def _parts(tool: Tool, call: Call) -> Iterator[bytes]:
    answer = tool.aws.run(call)
    for event in tool.aws.events(answer["Body"]):
        yield event.get("PayloadPart", {}).get("Bytes", b"")


def invoke_async(tool: Tool, request: Request, write: Callable[[str], None], *, wait_s: float | None) -> None:
    """Hand the request in; with wait_s, wait that long for its answer in S3 and print it. Raises ToolError."""
    answer = tool.aws.run(async_call(request))
    output, failure = answer["OutputLocation"], answer.get("FailureLocation")
    tool.say(f"accepted as {answer.get('InferenceId')}")
    if wait_s is None:
        tool.say(f"next: {_fetch(output)}")
        return
    give_up = time.monotonic() + wait_s
    interval_s, longest_s = ASYNC_POLL_INTERVAL_S
    while True:
        if (body := _object(tool, output)) is not None:
            write(text_of(body) + "\n")
            return
        if failure and (body := _object(tool, failure)) is not None:
            raise ToolError(f"the container failed: {' '.join(body.decode('utf-8', 'replace').split())}")
        if time.monotonic() >= give_up:
            raise ToolError(f"no answer within {wait_s:g} s: `{_fetch(output)}` later")
        tool.sleep(interval_s)
        interval_s = min(2 * interval_s, longest_s)


def _fetch(uri: str) -> str:
    return f"curl -s {uri}" if uri.startswith("file:") else f"aws s3 cp {uri} -"


def _object(tool: Tool, uri: str) -> bytes | None:
    if uri.startswith("file:"):
        # A local endpoint's.
        path = Path(urllib.parse.unquote(urllib.parse.urlsplit(uri).path))
        return path.read_bytes() if path.is_file() else None
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    answer = tool.aws.find(Call("s3", "GetObject", {"Bucket": bucket, "Key": key}))
    return None if answer is None else bytes(answer["Body"].read())
