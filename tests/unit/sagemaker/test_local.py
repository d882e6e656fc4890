"""The local endpoint, as a real boto3 client sees it."""

import concurrent.futures
import http.client
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError, EventStreamError

from sagemaker.container import Address, free_port
from sagemaker.local import DEFAULT_MAX_PAYLOAD_BYTES, EndpointConfig, LocalEndpoint
from tests.unit.sagemaker.fake_container import PIECES, FakeContainer

MakeClient = Callable[[str], Any]


def invoke(client: Any, body: bytes | str, **arguments: Any) -> Any:
    return client.invoke_endpoint(EndpointName="any-name", Body=body, **arguments)


def stream(client: Any, body: bytes | str, **arguments: Any) -> Any:
    return client.invoke_endpoint_with_response_stream(EndpointName="any-name", Body=body, **arguments)


def test_request_reaches_the_container_as_on_the_platform(client: Any) -> None:
    answer = invoke(
        client,
        "echo hé",
        ContentType="application/json",
        Accept="text/x",
        CustomAttributes="route=/v1/x,c=1",
        SessionId="NEW_SESSION",
        TargetModel="m.tar.gz",
        TargetVariant="blue",
        InferenceId="id-1",
        InferenceComponentName="part",
    )
    seen = json.loads(answer["Body"].read())
    assert seen["path"] == "/invocations"
    assert seen["body"].encode("latin-1").decode() == "hé"
    headers = seen["headers"]
    assert headers["content-type"] == "application/json"
    assert headers["accept"] == "text/x"
    found = {name.removeprefix("x-amzn-sagemaker-"): value for name, value in headers.items() if "sagemaker" in name}
    assert found == {
        "custom-attributes": "route=/v1/x,c=1",
        "session-id": "NEW_SESSION",
        "target-model": "m.tar.gz",
        "target-variant": "blue",
        "inference-id": "id-1",
        "inference-component": "part",
        "forwarded-api": "InvokeEndpoint",
    }
    assert "authorization" not in headers
    assert answer["ContentType"] == "application/x-echo"
    assert answer["InvokedProductionVariant"] == "blue"
    assert answer["ResponseMetadata"]["RequestId"]


def test_headers_of_the_answer(client: Any) -> None:
    answer = invoke(client, "headers")
    assert answer["CustomAttributes"] == "my-custom-attributes; Expires=x"
    assert answer["NewSessionId"] == "my-new-session-id; Expires=x"
    assert answer["ClosedSessionId"] == "my-closed-session-id; Expires=x"
    assert answer["InvokedProductionVariant"] == "AllTraffic"
    assert "retry-after" not in answer["ResponseMetadata"]["HTTPHeaders"]


@pytest.mark.parametrize("action", ["stream", "stream-plain"])
def test_streams(client: Any, action: str) -> None:
    answer = stream(client, action, Accept="text/event-stream", ContentType="application/json")
    assert answer["ContentType"] == "text/event-stream"
    assert b"".join(event["PayloadPart"]["Bytes"] for event in answer["Body"]) == b"".join(PIECES)


def test_accept_of_a_stream_reaches_the_container(client: Any) -> None:
    answer = stream(client, "echo", Accept="text/event-stream", SessionId="s")
    (event,) = answer["Body"]
    headers = json.loads(event["PayloadPart"]["Bytes"])["headers"]
    assert headers["accept"] == "text/event-stream"
    assert "x-amzn-sagemaker-accept" not in headers
    assert headers["x-amzn-sagemaker-forwarded-api"] == "InvokeEndpointWithResponseStream"


def test_pieces_arrive_as_they_come(client: Any, container: FakeContainer) -> None:
    answer = stream(client, "stream-then-hold")
    assert answer["CustomAttributes"] == "mine"
    events = iter(answer["Body"])
    # The container holds the second piece back until the first has been read here.
    assert next(events)["PayloadPart"]["Bytes"] == PIECES[0]
    container.release.set()
    assert next(events)["PayloadPart"]["Bytes"] == PIECES[1]
    assert list(events) == []


@pytest.mark.parametrize("call", [invoke, stream])
@pytest.mark.parametrize(("status", "side"), [(400, "client"), (429, "client"), (500, "server"), (503, "server")])
def test_errors_of_the_container(client: Any, call: Any, status: int, side: str) -> None:
    with pytest.raises(client.exceptions.ModelError) as caught:
        call(client, f"status {status}")
    response = caught.value.response
    assert response["ResponseMetadata"]["HTTPStatusCode"] == 424
    assert response["ResponseMetadata"]["RetryAttempts"] == 0
    assert response["OriginalStatusCode"] == status
    assert json.loads(response["OriginalMessage"]) == {"error": {"message": "nö"}}
    assert "any-name" in response["LogStreamArn"]
    assert f"Received {side} error ({status}) from primary with message" in response["Error"]["Message"]


@pytest.mark.parametrize("call", [invoke, stream])
@pytest.mark.parametrize("action", ["cut-head", "cut-body"])
def test_a_broken_answer_is_an_error_of_the_model(client: Any, call: Any, action: str) -> None:
    if (call, action) == (stream, "cut-body"):
        with pytest.raises(EventStreamError, match="broke"):
            list(call(client, action)["Body"])
        return
    with pytest.raises(client.exceptions.ModelError, match=r"server error \(0\)"):
        call(client, action)


@pytest.mark.parametrize("action", ["stream-broken", "stream-bad-chunk"])
def test_a_broken_stream_ends_with_its_error(client: Any, action: str) -> None:
    events = iter(stream(client, action)["Body"])
    assert next(events)["PayloadPart"]["Bytes"] == PIECES[0]
    with pytest.raises(EventStreamError, match="ModelStreamError"):
        next(events)


@pytest.mark.parametrize("call", [invoke, stream])
def test_a_container_that_is_not_there(make_client: MakeClient, call: Any) -> None:
    config = EndpointConfig(container=Address("127.0.0.1", free_port()))
    with LocalEndpoint(config) as endpoint:
        client = make_client(endpoint.url)
        with pytest.raises(client.exceptions.ModelError, match=r"server error \(0\)") as caught:
            call(client, "echo")
        client.close()
    assert caught.value.response["OriginalStatusCode"] == 0


@pytest.mark.parametrize(("call", "action"), [(invoke, "hold"), (stream, "hold"), (invoke, "trickle")])
def test_no_answer_in_time(container: FakeContainer, make_client: MakeClient, call: Any, action: str) -> None:
    config = EndpointConfig(container=container.address, invocation_timeout_s=0.3)
    with LocalEndpoint(config) as endpoint:
        client = make_client(endpoint.url)
        with pytest.raises(client.exceptions.ModelError, match=r"timed out.*0\.3 seconds"):
            call(client, action)
        client.close()
        assert container.left.wait(5), "the container is not told"


@pytest.mark.parametrize("action", ["stream-then-hold", "stream-forever"])
def test_a_stream_over_its_time(container: FakeContainer, make_client: MakeClient, action: str) -> None:
    config = EndpointConfig(container=container.address, stream_timeout_s=0.4)
    with LocalEndpoint(config) as endpoint:
        client = make_client(endpoint.url)
        start = time.monotonic()
        with pytest.raises(EventStreamError, match=r"within 0\.4 seconds"):
            list(stream(client, action)["Body"])
        assert time.monotonic() - start < 5
        client.close()
        assert container.left.wait(5)


@pytest.mark.parametrize("action", ["stream-then-hold", "stream-forever"])
def test_a_client_that_leaves_a_stream_frees_the_container(client: Any, container: FakeContainer, action: str) -> None:
    answer = stream(client, action)
    next(iter(answer["Body"]))
    answer["Body"].close()
    assert container.left.wait(5)


@pytest.mark.parametrize("path", ["invocations", "invocations-response-stream"])
def test_a_client_that_leaves_before_the_answer_frees_the_container(
    endpoint: LocalEndpoint, container: FakeContainer, path: str
) -> None:
    with socket.create_connection(("127.0.0.1", endpoint.port), timeout=5) as connection:
        connection.sendall(f"POST /endpoints/x/{path} HTTP/1.1\r\nContent-Length: 4\r\n\r\nhold".encode())
        assert not container.left.wait(0.2)
    assert container.left.wait(5)


def test_closing_the_endpoint_cuts_what_waits(container: FakeContainer) -> None:
    with LocalEndpoint(EndpointConfig(container=container.address)) as endpoint:
        connection = socket.create_connection(("127.0.0.1", endpoint.port), timeout=5)
        connection.sendall(b"POST /endpoints/x/invocations HTTP/1.1\r\nContent-Length: 4\r\n\r\nhold")
        assert not container.left.wait(0.2)
    assert container.left.wait(5)
    connection.close()
    endpoint.close()


def test_requests_run_side_by_side(client: Any, container: FakeContainer) -> None:
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        held = [pool.submit(invoke, client, "hold") for _ in range(4)]
        assert invoke(client, "size abc")["Body"].read() == b"3"
        assert not any(future.done() for future in held)
        container.release.set()
        assert [future.result(10)["Body"].read() for future in held] == [b"late"] * 4


@pytest.mark.parametrize("call", [invoke, stream])
def test_a_body_over_the_limit_is_refused(client: Any, call: Any) -> None:
    with pytest.raises(ClientError) as caught:
        call(client, b"size " + b"x" * DEFAULT_MAX_PAYLOAD_BYTES)
    assert caught.value.response["Error"]["Code"] == "413"
    assert "26214400 bytes" in caught.value.response["Error"]["Message"]


def test_a_body_at_the_limit_and_a_lowered_limit(
    client: Any, container: FakeContainer, make_client: MakeClient
) -> None:
    size = DEFAULT_MAX_PAYLOAD_BYTES - len("size ")
    assert invoke(client, b"size " + b"x" * size)["Body"].read() == str(size).encode()
    config = EndpointConfig(container=container.address, max_payload_bytes=6 * 2**20)
    with LocalEndpoint(config) as endpoint:
        smaller = make_client(endpoint.url)
        assert invoke(smaller, b"size " + b"x" * 6_000_000)["Body"].read() == b"6000000"
        with pytest.raises(ClientError, match="6291456 bytes"):
            invoke(smaller, b"size " + b"x" * 7_000_000)
        smaller.close()


def test_twenty_megabytes_both_ways(client: Any) -> None:
    body = b"x" * 20_000_000
    answer = json.loads(invoke(client, b"echo " + body)["Body"].read())
    assert answer["body"].encode() == body
    pieces = [event["PayloadPart"]["Bytes"] for event in stream(client, b"echo " + body)["Body"]]
    assert json.loads(b"".join(pieces))["body"].encode() == body


EXPIRES = "Expires=2030-01-01T00:00:00Z"


@pytest.mark.parametrize(
    ("headers", "new", "closed"),
    [
        (f"New-Session-Id: a-1; {EXPIRES}", f"a-1; {EXPIRES}", None),
        (f"Session-Id: a-1; {EXPIRES}", f"a-1; {EXPIRES}", None),
        (f"Session-Id: old; {EXPIRES}\nNew-Session-Id: a-1; {EXPIRES}", f"a-1; {EXPIRES}", None),
        # A container that merely repeats the session's id opens none.
        ("Session-Id: a-1", None, None),
        ("Closed-Session-Id: a-1", None, "a-1"),
    ],
)
def test_sessions_by_either_convention(client: Any, headers: str, new: str | None, closed: str | None) -> None:
    answer = invoke(client, f"session {headers}", SessionId="NEW_SESSION")
    assert answer.get("NewSessionId") == new
    assert answer.get("ClosedSessionId") == closed


def test_names_that_do_not_exist(container: FakeContainer, make_client: MakeClient) -> None:
    config = EndpointConfig(container=container.address, endpoint_names=("mine", "any-name"))
    with LocalEndpoint(config) as endpoint:
        client = make_client(endpoint.url)
        assert invoke(client, "size abc")["Body"].read() == b"3"
        with pytest.raises(client.exceptions.ValidationError, match=r"other of account .* not found"):
            client.invoke_endpoint(EndpointName="other", Body=b"size")
        client.close()


def answer_at(location: str) -> bytes:
    path = Path(location.removeprefix("file://"))
    give_up = time.monotonic() + 5
    while not path.exists():
        assert time.monotonic() < give_up, "no answer"
        time.sleep(0.02)
    return path.read_bytes()


def test_an_asynchronous_call(client: Any) -> None:
    accepted = client.invoke_endpoint_async(
        EndpointName="x",
        Body=b"echo hello",
        ContentType="application/x-mine",
        Accept="text/x",
        InferenceId="id-1",
        CustomAttributes="c=1",
        InvocationTimeoutSeconds=60,
        RequestTTLSeconds=60,
    )
    assert accepted["ResponseMetadata"]["HTTPStatusCode"] == 202
    assert accepted["InferenceId"] == "id-1"
    seen = json.loads(answer_at(accepted["OutputLocation"]))
    assert seen["body"] == "hello"
    assert seen["headers"]["content-type"] == "application/x-mine"
    assert seen["headers"]["accept"] == "text/x"
    found = {name for name in seen["headers"] if name.startswith("x-amzn-sagemaker-")}
    assert found == {f"x-amzn-sagemaker-{name}" for name in ("custom-attributes", "inference-id", "forwarded-api")}


def test_an_asynchronous_call_with_its_input_in_a_file(client: Any, tmp_path: Path) -> None:
    (tmp_path / "in put").write_bytes(b"size " + b"x" * 1_000_000)
    location = (tmp_path / "in put").as_uri()
    accepted = client.invoke_endpoint_async(EndpointName="x", InputLocation=location)
    assert accepted["InferenceId"]
    assert answer_at(accepted["OutputLocation"]) == b"1000000"


@pytest.mark.parametrize(
    ("body", "words"),
    [("status 500", '"message": "nö"'), ("cut-head", "no answer"), ("hold", "within 1 seconds")],
)
def test_an_asynchronous_call_that_fails(client: Any, body: str, words: str) -> None:
    accepted = client.invoke_endpoint_async(EndpointName="x", Body=body.encode(), InvocationTimeoutSeconds=1)
    assert words in answer_at(accepted["FailureLocation"]).decode()
    assert not Path(accepted["OutputLocation"].removeprefix("file://")).exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"InputLocation": "s3://bucket/key"}, "the local endpoint has no S3"),
        ({"InputLocation": "file:///nowhere/at/all"}, "No such file"),
        ({"InputLocation": "file:///dev/zero"}, "is not a file"),
        ({"InputLocation": "file:///etc/%00passwd"}, "no address of a file"),
        ({"InputLocation": "file://[::/x"}, "no address of a file"),
        ({"Body": b"x" * 128_001}, "over 128000 bytes"),
        ({}, "one of Body and InputLocation"),
        ({"Body": b"x", "InputLocation": "file:///x"}, "one of Body and InputLocation"),
    ],
)
def test_bad_asynchronous_calls(client: Any, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(client.exceptions.ClientError, match=words) as caught:
        client.invoke_endpoint_async(EndpointName="x", **arguments)
    assert caught.value.response["Error"]["Code"] == "ValidationError"


def test_asynchronous_answers_go_where_they_are_told(
    container: FakeContainer, make_client: MakeClient, tmp_path: Path
) -> None:
    config = EndpointConfig(container=container.address, async_directory=tmp_path / "answers")
    with LocalEndpoint(config) as endpoint:
        client = make_client(endpoint.url)
        accepted = client.invoke_endpoint_async(EndpointName="x", Body=b"size abc")
        assert answer_at(accepted["OutputLocation"]) == b"3"
        # One that runs does not hold the endpoint's end up, and its container is told.
        client.invoke_endpoint_async(EndpointName="x", Body=b"hold")
        assert not container.left.wait(0.2)
        client.close()
    assert container.left.wait(5)
    assert Path(accepted["OutputLocation"].removeprefix("file://")).parent == tmp_path / "answers"


@pytest.mark.parametrize(
    ("head", "status", "error_type"),
    [
        ("GET /endpoints/x/invocations HTTP/1.1", 404, "UnknownOperationException"),
        ("BREW /ping HTTP/1.1", 404, "UnknownOperationException"),
        ("POST / HTTP/1.1\r\nContent-Length: 0", 404, "UnknownOperationException"),
        ("POST /endpoints/a/b/invocations HTTP/1.1\r\nContent-Length: 0", 404, "UnknownOperationException"),
        ("POST /endpoints/x/invocations HTTP/1.1\r\nContent-Length: x", 411, "ValidationError"),
        ("POST /endpoints/x/invocations HTTP/1.1\r\nContent-Length: -1", 411, "ValidationError"),
        ("POST /endpoints/x/invocations HTTP/1.1\r\nTransfer-Encoding: chunked", 411, "ValidationError"),
        ("POST /endpoints/x/invocations HTTP/1.1\r\nContent-Length: 27000000\r\nExpect: 100-continue", 413, None),
        ("POST /endpoints/x/invocations HTTP/9", 400, "SerializationException"),
        ("rubbish", 400, "SerializationException"),
    ],
)
def test_bad_requests_get_one_json_error(
    endpoint: LocalEndpoint, head: str, status: int, error_type: str | None
) -> None:
    with socket.create_connection(("127.0.0.1", endpoint.port), timeout=5) as connection:
        connection.sendall(f"{head}\r\n\r\n".encode())
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert answer.status == status
        assert answer.headers["x-amzn-errortype"] == error_type
        assert json.loads(answer.read())["message"]
        assert connection.recv(1) == b"", "the connection ends"
        answer.close()


def test_expect_100_continue_and_keep_alive(endpoint: LocalEndpoint) -> None:
    with socket.create_connection(("127.0.0.1", endpoint.port), timeout=5) as connection:
        for _ in range(2):
            connection.sendall(
                b"POST /endpoints/x/invocations HTTP/1.1\r\nContent-Length: 8\r\nExpect: 100-continue\r\n\r\n"
            )
            assert connection.recv(100).startswith(b"HTTP/1.1 100 Continue")
            connection.sendall(b"size abc")
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            assert (answer.status, answer.read()) == (200, b"3")
            answer.close()
