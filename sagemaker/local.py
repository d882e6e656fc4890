"""A SageMaker endpoint on this machine: the SageMaker Runtime API in front of one container.

An unmodified boto3 client reaches it with `endpoint_url`; no AWS account, no signature check. Knows the wire protocol
of InvokeEndpoint, InvokeEndpointWithResponseStream and InvokeEndpointAsync (as boto3 1.44.5 speaks it) and the
platform's limits. Must not know what the container serves.

Where it does as the platform does, beyond passing requests on:

- an answer of 4xx or 5xx is error 424 ModelError, with the container's status and body in it;
- a container that does not answer in time, refuses the connection or breaks it off is a ModelError too, with status 0,
  which is what users see of an endpoint whose container hangs or has died ("Received server error (0) …");
- a body over 25 MiB is refused with 413. AWS's developer guide says 25 MB, its API model 6 MiB (a setting lowers it);
- a session that a container opens by either of AWS's two conventions reaches the client as NewSessionId;
- an asynchronous answer goes to a file, in place of S3;
- `Retry-After` and other headers of the container do not reach the client.

What it does not do: sign-in, auto scaling, several variants, batch inference, keeping a session on one instance (there
is one), and replacing a container whose /ping turns bad.
"""

import contextlib
import dataclasses
import http.client
import json
import logging
import re
import socket
import sys
import tempfile
import threading
import time
import urllib.parse
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from sagemaker import eventstream
from sagemaker.container import Address
from sagemaker.invocation import ClientLeft, ContainerBroke, ContainerTimedOut, Invocation
from sagemaker.local_async import DEFAULT_TIMEOUT_S, MAX_INLINE_BYTES, AsyncInvocations, BadInput, read_input

DEFAULT_MAX_PAYLOAD_BYTES = 25 * 2**20
# How much of a refused body is read and thrown away, so that the client reads our answer and not a broken pipe.
_MAX_DIGITS = 15
_MAX_DRAINED_BYTES = 256 * 2**20
_IDLE_TIMEOUT_S = 60.0
_PATH = re.compile(r"/endpoints/([^/]+)/(invocations|invocations-response-stream|async-invocations)")
_PREFIX = "x-amzn-sagemaker-"
_STREAM_ACCEPT = "x-amzn-sagemaker-accept"
_CONTENT_TYPE = "x-amzn-sagemaker-content-type"
_FORWARDED_API = "x-amzn-sagemaker-forwarded-api"
# What an asynchronous call tells the platform, and not the container.
_ASYNC_HEADERS = tuple(
    _PREFIX + name
    for name in ("inputlocation", "requestttlseconds", "invocationtimeoutseconds", "filename", "s3outputpathextension")
)
# How TorchServe and LMI tell a new session; vLLM's tells New-Session-Id. Without a time it is no new one.
_SESSION = "X-Amzn-SageMaker-Session-Id"
_NEW_SESSION = "X-Amzn-SageMaker-New-Session-Id"
_SESSION_WITH_EXPIRY = re.compile(r"[^;\s]+\s*;\s*Expires=.+", re.I)
_ANSWER_HEADERS = (
    "X-Amzn-SageMaker-Custom-Attributes",
    _NEW_SESSION,
    "X-Amzn-SageMaker-Closed-Session-Id",
)

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EndpointConfig:
    """What the endpoint stands in front of, and its limits.

    endpoint_names: names that exist; empty is any name.
    invocation_timeout_s: from request to the end of an answer, or to the head of a streamed one.
    stream_timeout_s: from request to the end of a streamed answer.
    async_directory: for the answers of asynchronous calls; None makes one that goes with the endpoint.
    """

    container: Address
    endpoint_names: tuple[str, ...] = ()
    invocation_timeout_s: float = 60.0
    stream_timeout_s: float = 8 * 60.0
    max_payload_bytes: int = DEFAULT_MAX_PAYLOAD_BYTES
    async_directory: Path | None = None


class LocalEndpoint:
    """The endpoint on 127.0.0.1. It takes the port at once and answers within `with`, with a thread per connection.

    port: 0 takes a free one; the attribute tells which. Raises OSError when the port is taken.
    """

    def __init__(self, config: EndpointConfig, port: int = 0) -> None:
        self._server = _Server(config, port)
        self.port: int = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread: threading.Thread | None = None

    def __enter__(self) -> "LocalEndpoint":
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="local-endpoint")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the port back, cut the connections, and wait for their threads. May be called again."""
        if self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._thread = None
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    request_queue_size = 128

    def __init__(self, config: EndpointConfig, port: int) -> None:
        self.config = config
        self._clients: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._async: AsyncInvocations | None = None
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        super().__init__(("127.0.0.1", port), _Handler)

    def asynchronous(self) -> AsyncInvocations:
        """The queue of asynchronous calls, made with the first of them."""
        with self._lock:
            if self._async is None:
                directory = self.config.async_directory
                if directory is None:
                    self._temporary = tempfile.TemporaryDirectory(prefix="sagemaker-async-")
                    directory = Path(self._temporary.name)
                self._async = AsyncInvocations(self.config.container, directory)
            return self._async

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._clients.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._clients.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        # A thread that waits for its client or for the container sees the client leave.
        with self._lock:
            for client in self._clients:
                with contextlib.suppress(OSError):
                    client.shutdown(socket.SHUT_RDWR)
        super().server_close()
        if self._async is not None:
            self._async.close()
        if self._temporary is not None:
            self._temporary.cleanup()

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            _logger.exception("a request failed")


def _is_number(text: str) -> bool:
    """Python refuses to read a number of thousands of digits."""
    return text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    server_version = "LocalSageMaker"
    sys_version = ""
    timeout = _IDLE_TIMEOUT_S
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        try:
            match = _PATH.fullmatch(urllib.parse.urlsplit(self.path).path)
        except ValueError:  # half an IPv6 address
            match = None
        if match is None:
            self._unknown_operation()
            return
        name, operation = urllib.parse.unquote(match[1]), match[2]
        length = self._body_length()
        if length is None:
            return
        body = self.rfile.read(length)
        if len(body) < length:
            self.close_connection = True
            return
        names = self.server.config.endpoint_names
        if names and name not in names:
            self._refuse(400, "ValidationError", f"Endpoint {name} of account 000000000000 not found.")
            return
        invoke = {
            "invocations": self._invoke,
            "invocations-response-stream": self._invoke_stream,
            "async-invocations": self._invoke_async,
        }
        try:
            invoke[operation](name, body)
        except (ClientLeft, ConnectionError, TimeoutError):
            # TimeoutError: it does not read what we send.
            _logger.info("%s: the client left", name)
            self.close_connection = True

    def _unknown_operation(self) -> None:
        self.close_connection = True
        self._refuse(
            404,
            "UnknownOperationException",
            "This local endpoint knows InvokeEndpoint, InvokeEndpointWithResponseStream and InvokeEndpointAsync only.",
        )

    do_GET = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _unknown_operation  # noqa: N815 - http.server's names

    def _invoke(self, name: str, body: bytes) -> None:
        deadline = time.monotonic() + self.server.config.invocation_timeout_s
        with Invocation(self.server.config.container, self.connection, deadline) as invocation:
            try:
                answer = invocation.send(body, self._container_headers("InvokeEndpoint"))
                content = invocation.read()
            except (ContainerTimedOut, ContainerBroke) as error:
                self._no_answer(name, error)
                return
        if answer.status // 100 == 2:
            content_type = answer.headers.get("Content-Type", "application/octet-stream")
            self._send(200, {"Content-Type": content_type, **self._answer_headers(answer)}, content)
        else:
            self._model_error(name, answer.status, content)

    def _invoke_stream(self, name: str, body: bytes) -> None:
        start = time.monotonic()
        config = self.server.config
        with Invocation(config.container, self.connection, start + config.invocation_timeout_s) as invocation:
            try:
                answer = invocation.send(body, self._container_headers("InvokeEndpointWithResponseStream"))
                content = b"" if answer.status // 100 == 2 else invocation.read()
            except (ContainerTimedOut, ContainerBroke) as error:
                self._no_answer(name, error)
                return
            if answer.status // 100 != 2:
                self._model_error(name, answer.status, content)
                return
            invocation.deadline = start + config.stream_timeout_s
            self._send_stream(answer, invocation)

    def _invoke_async(self, name: str, body: bytes) -> None:
        location = self.headers.get("X-Amzn-SageMaker-InputLocation")
        timeout = self.headers.get("X-Amzn-SageMaker-InvocationTimeoutSeconds", f"{DEFAULT_TIMEOUT_S:g}")
        try:
            if location is None and len(body) > MAX_INLINE_BYTES:
                raise BadInput(f"Body is over {MAX_INLINE_BYTES} bytes: use InputLocation.")
            if (location is None) == (not body):
                raise BadInput("Give one of Body and InputLocation.")
            if not (_is_number(timeout) and 1 <= int(timeout) <= 3600):
                raise BadInput(f"InvocationTimeoutSeconds {timeout[:20]} is not 1 to 3600.")
            accepted = self.server.asynchronous().submit(
                body if location is None else read_input(location),
                self._container_headers("InvokeEndpoint"),
                inference_id=self.headers.get("X-Amzn-SageMaker-Inference-Id"),
                timeout_s=float(timeout),
            )
        except BadInput as error:
            self._refuse(400, "ValidationError", str(error))
            return
        headers = {
            "Content-Type": "application/json",
            "X-Amzn-SageMaker-OutputLocation": accepted.output,
            "X-Amzn-SageMaker-FailureLocation": accepted.failure,
        }
        self._send(202, headers, json.dumps({"InferenceId": accepted.inference_id}).encode())

    def _send_stream(self, answer: http.client.HTTPResponse, invocation: Invocation) -> None:
        headers = {
            "Content-Type": eventstream.CONTENT_TYPE,
            "Transfer-Encoding": "chunked",
            "X-Amzn-SageMaker-Content-Type": answer.headers.get("Content-Type", "application/octet-stream"),
            **self._answer_headers(answer),
        }
        self._send_head(200, headers)
        try:
            for piece in invocation.chunks():
                self._send_chunk(eventstream.payload_part(piece))
        except ContainerTimedOut:
            limit_s = self.server.config.stream_timeout_s
            message = f"The container did not finish its answer within {limit_s:g} seconds."
            self._send_chunk(eventstream.model_stream_error("ModelInvocationTimeExceeded", message))
        except ContainerBroke:
            message = "The container broke its answer off."
            self._send_chunk(eventstream.model_stream_error("StreamBroken", message))
        self.wfile.write(b"0\r\n\r\n")

    def _send_chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def _container_headers(self, api: str) -> dict[str, str]:
        """What the platform hands on: the body's type, what is accepted, and its own headers."""
        headers = {
            name: value
            for name, value in self.headers.items()
            if name.lower().startswith(_PREFIX)
            and name.lower() not in (_STREAM_ACCEPT, _CONTENT_TYPE, _FORWARDED_API, *_ASYNC_HEADERS)
        }
        # boto3's stream call cannot say Accept, which is about the event stream there.
        accept = self.headers.get(_STREAM_ACCEPT) or self.headers.get("Accept")
        if accept is not None:
            headers["Accept"] = accept
        # An asynchronous call may have no body of its own, so the type of what it points to has another name.
        content_type = self.headers.get(_CONTENT_TYPE) or self.headers.get("Content-Type")
        if content_type is not None:
            headers["Content-Type"] = content_type
        # Undocumented, but AWS's own containers read it.
        headers["X-Amzn-SageMaker-Forwarded-Api"] = api
        return headers

    def _answer_headers(self, answer: http.client.HTTPResponse) -> dict[str, str]:
        found = {name: answer.headers[name] for name in _ANSWER_HEADERS if name in answer.headers}
        session = answer.headers.get(_SESSION, "")
        if _NEW_SESSION not in found and _SESSION_WITH_EXPIRY.fullmatch(session.strip()):
            found[_NEW_SESSION] = session
        variant = self.headers.get("X-Amzn-SageMaker-Target-Variant", "AllTraffic")
        return {**found, "x-Amzn-Invoked-Production-Variant": variant}

    def _body_length(self) -> int | None:
        """The length of a body that may be read; None when the request has been refused."""
        text = self.headers.get("Content-Length", "0")
        if "Transfer-Encoding" in self.headers or not _is_number(text):
            self.close_connection = True
            self._refuse(411, "ValidationError", "The request needs a Content-Length.")
            return None
        length = int(text)
        limit = self.server.config.max_payload_bytes
        if length <= limit:
            return length
        self.close_connection = True
        if self.headers.get("Expect", "").lower() != "100-continue":
            self._drain(min(length, _MAX_DRAINED_BYTES))
        # No error type: boto3 shows the number, as with the platform.
        self._refuse(413, None, f"HTTP content length exceeded {limit} bytes.")
        return None

    def _drain(self, length: int) -> None:
        while length > 0 and (data := self.rfile.read(min(length, 2**20))):
            length -= len(data)

    def handle_expect_100(self) -> bool:
        """Ask for the body only where it will be read; http.server's own asks always."""
        text = self.headers.get("Content-Length", "0")
        if _is_number(text) and int(text) <= self.server.config.max_payload_bytes:
            return super().handle_expect_100()
        return True

    def _no_answer(self, name: str, error: Exception) -> None:
        if isinstance(error, ContainerTimedOut):
            limit_s = self.server.config.invocation_timeout_s
            message = f"Your invocation timed out: the container did not answer within {limit_s:g} seconds."
        else:
            message = f"The container gave no answer ({error})."
        self._model_error(name, 0, message.encode())

    def _model_error(self, name: str, status: int, content: bytes) -> None:
        original = content.decode("utf-8", "replace")
        side = "client" if 400 <= status < 500 else "server"
        group = f"/aws/sagemaker/Endpoints/{name}"
        fields = {
            "Message": f'Received {side} error ({status}) from primary with message "{original}". '
            f"See the container's log (on AWS: {group}) for more information.",
            "OriginalStatusCode": status,
            "OriginalMessage": original,
            "LogStreamArn": f"arn:aws:logs:local:000000000000:log-group:{group}",
        }
        self._send_error(424, "ModelError", fields)

    def _refuse(self, status: int, error_type: str | None, message: str) -> None:
        self._send_error(status, error_type, {"message": message})

    def _send_error(self, status: int, error_type: str | None, fields: dict[str, Any]) -> None:
        headers = {"Content-Type": "application/json"}
        if error_type is not None:
            headers["x-amzn-errortype"] = error_type
        self._send(status, headers, json.dumps(fields).encode())

    def _send(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self._send_head(status, {**headers, "Content-Length": str(len(content))})
        if self.command != "HEAD":
            self.wfile.write(content)

    def _send_head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            # A header that the container folded over lines would end ours.
            self.send_header(name, " ".join(value.split()))
        self.send_header("x-amzn-RequestId", str(uuid.uuid4()))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What http.server refuses by itself (bad request line, unknown method), in the API's form."""
        self.close_connection = True
        # A request line without a version would be answered without a head.
        self.request_version = self.protocol_version
        if code == 501:
            self._unknown_operation()
        else:
            self._refuse(code, "SerializationException", message or http.client.responses.get(code, "Bad request"))

    def log_message(self, format: str, *args: Any) -> None:
        """To `logging` instead of straight to stderr."""
        _logger.info(format, *args)
