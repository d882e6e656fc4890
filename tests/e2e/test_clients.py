"""Every client that the README names gets the same real text from the shipped model."""

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator

import boto3
import pytest
from openai import BadRequestError, NotFoundError, OpenAI

from tests.e2e.stack import MODEL, ROOT, Stack, free_port, wait_until

COUNT = "Count from 3 to 9."
COUNTED = "3 4 5 6 7 8 9"


def chat_body(text: str = COUNT, **fields: object) -> dict:
    return {"messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 64, **fields}


@pytest.fixture(scope="module")
def openai_client(stack: Stack) -> OpenAI:
    return OpenAI(base_url=f"{stack.url}/v1", api_key="none", max_retries=0, _strict_response_validation=True)


@pytest.fixture(scope="module")
def runtime(stack: Stack) -> Iterator[object]:
    """An unmodified boto3 client on the local SageMaker endpoint."""
    port = free_port()
    command = [sys.executable, "-m", "sagemaker", "local", "--url", stack.url, "--port", str(port)]
    process = subprocess.Popen(command, cwd=ROOT)

    def is_open() -> bool:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=2).close()
        except urllib.error.HTTPError:
            return True
        except OSError:
            return False
        return True

    try:
        wait_until(is_open, what="the local endpoint")
        yield boto3.client(
            "sagemaker-runtime",
            endpoint_url=f"http://127.0.0.1:{port}",
            region_name="us-east-1",
            aws_access_key_id="x",
            aws_secret_access_key="x",
        )
    finally:
        process.terminate()
        process.wait(35)


def test_plain_http(stack: Stack) -> None:
    status, body = stack.post("/v1/chat/completions", chat_body())
    assert status == 200
    assert body["choices"][0]["message"]["content"] == COUNTED
    assert body["choices"][0]["finish_reason"] == "stop"
    usage = body["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] > 10


def test_server_sent_events(stack: Stack) -> None:
    body = json.dumps(chat_body(stream=True, stream_options={"include_usage": True})).encode()
    request = urllib.request.Request(f"{stack.url}/v1/chat/completions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        assert response.headers["Content-Type"].startswith("text/event-stream")
        lines = [line.decode().strip() for line in response if line.strip()]
    assert lines[-1] == "data: [DONE]"
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    text = "".join(choice["delta"].get("content") or "" for event in events for choice in event["choices"])
    assert text == COUNTED
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["completion_tokens"] > 5
    assert [c["finish_reason"] for e in events for c in e["choices"] if c["finish_reason"]] == ["stop"]


def test_openai_client(openai_client: OpenAI) -> None:
    model = openai_client.models.list().data[0].id
    messages = [{"role": "user", "content": COUNT}]
    answer = openai_client.chat.completions.create(model=model, messages=messages, temperature=0, n=2)  # type: ignore[call-overload]
    assert [choice.message.content for choice in answer.choices] == [COUNTED] * 2
    stream = openai_client.chat.completions.create(model="", messages=messages, temperature=0, stream=True)  # type: ignore[call-overload]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == COUNTED
    completion = openai_client.completions.create(model=model, prompt="Hello", max_tokens=5, temperature=0)
    assert completion.usage is not None
    assert completion.usage.completion_tokens <= 5
    with pytest.raises(NotFoundError) as not_found:
        openai_client.models.retrieve("gpt-none")
    assert not_found.value.status_code == 404
    with pytest.raises(BadRequestError) as refused:
        openai_client.chat.completions.create(model=model, messages=messages, temperature=-1)  # type: ignore[call-overload]
    assert refused.value.param == "temperature"


def test_seed_makes_sampling_repeatable(stack: Stack) -> None:
    def sample(seed: int) -> str:
        return stack.chat("Tell me a joke.", temperature=10.0, seed=seed, max_tokens=24)

    assert sample(1) == sample(1)
    assert len({sample(seed) for seed in range(5)}) > 1


def test_stop_strings_end_the_text_before_them(stack: Stack) -> None:
    assert stack.chat(COUNT, stop=[" 7"]) == "3 4 5 6"


def test_echo_and_the_stop_string_that_stays(stack: Stack) -> None:
    body = {"prompt": "Galley is", "echo": True, "max_tokens": 8, "temperature": 0}
    status, echoed = stack.post("/v1/completions", body)
    assert status == 200
    _, plain = stack.post("/v1/completions", {**body, "echo": False})
    assert echoed["choices"][0]["text"] == "Galley is" + plain["choices"][0]["text"]
    _, alone = stack.post("/v1/completions", {**body, "max_tokens": 0})
    assert alone["choices"][0]["text"] == "Galley is"
    assert alone["usage"]["completion_tokens"] == 0
    assert alone["usage"]["prompt_tokens_details"]["cached_tokens"] >= 0
    assert stack.chat(COUNT, stop=[" 7"], include_stop_str_in_output=True) == "3 4 5 6 7"
    assert stack.chat(COUNT, stop=[" 7"], min_tokens=10) == COUNTED


def test_boto3_invoke_endpoint(runtime: object) -> None:
    for body in (chat_body(), {"inputs": "Hello", "parameters": {"max_new_tokens": 4}}, {"prompt": "Hello"}):
        response = runtime.invoke_endpoint(  # type: ignore[attr-defined]
            EndpointName="galley", ContentType="application/json", Body=json.dumps(body)
        )
        answer = json.loads(response["Body"].read())
        if "messages" in body:
            assert answer["choices"][0]["message"]["content"] == COUNTED


def test_boto3_invoke_endpoint_with_response_stream(runtime: object) -> None:
    response = runtime.invoke_endpoint_with_response_stream(  # type: ignore[attr-defined]
        EndpointName="galley", ContentType="application/json", Body=json.dumps(chat_body(stream=True))
    )
    raw = b"".join(event["PayloadPart"]["Bytes"] for event in response["Body"])
    lines = [line.removeprefix("data: ") for line in raw.decode().split("\n") if line]
    assert lines[-1] == "[DONE]"
    text = "".join(json.loads(line)["choices"][0]["delta"].get("content") or "" for line in lines[:-1])
    assert text == COUNTED


def test_boto3_sees_a_model_error(runtime: object) -> None:
    with pytest.raises(runtime.exceptions.ModelError) as error:  # type: ignore[attr-defined]
        runtime.invoke_endpoint(EndpointName="galley", ContentType="application/json", Body=b"{}")  # type: ignore[attr-defined]
    assert error.value.response["OriginalStatusCode"] == 400
    original = json.loads(error.value.response["OriginalMessage"])["error"]
    assert "must have 'messages'" in original["message"]


def test_boto3_sends_twenty_megabytes(runtime: object) -> None:
    record = json.dumps({"prompt": "Hello", "max_tokens": 4, "user": "x" * 500_000})
    response = runtime.invoke_endpoint(  # type: ignore[attr-defined]
        EndpointName="galley",
        ContentType="application/jsonlines",
        Body="\n".join([record] * 41),
        CustomAttributes="job=9",
    )
    answers = [json.loads(line) for line in response["Body"].read().splitlines()]
    assert [answer["object"] for answer in answers] == ["text_completion"] * 41
    assert response["CustomAttributes"] == "job=9"
    with pytest.raises(runtime.exceptions.ModelError) as error:  # type: ignore[attr-defined]
        runtime.invoke_endpoint(  # type: ignore[attr-defined]
            EndpointName="galley", ContentType="application/json", Body=json.dumps(chat_body("x" * 20_000_000))
        )
    assert error.value.response["OriginalStatusCode"] == 400
    assert "context" in error.value.response["OriginalMessage"]


def test_offline_gives_the_text_of_the_server(stack: Stack) -> None:
    code = (
        "import json, sys; from engine import LLM, SamplingParams;"
        "r = LLM(model=sys.argv[1]).generate(['Hello', 'Galley is'], SamplingParams(temperature=0, max_tokens=32));"
        "print(json.dumps([o.outputs[0].text for o in r]))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(MODEL)], cwd=ROOT, check=True, capture_output=True, timeout=120
    )
    offline = json.loads(run.stdout.splitlines()[-1])
    status, body = stack.post("/v1/completions", {"prompt": ["Hello", "Galley is"], "temperature": 0, "max_tokens": 32})
    assert status == 200
    assert [choice["text"] for choice in body["choices"]] == offline


def test_boto3_keeps_a_session(runtime: object) -> None:
    def turn(text: str, session_id: str) -> dict:
        return runtime.invoke_endpoint(  # type: ignore[attr-defined, no-any-return]
            EndpointName="galley",
            ContentType="application/json",
            SessionId=session_id,
            CustomAttributes="tenant=7",
            InferenceId="call-1",
            Body=json.dumps(chat_body(text)),
        )

    long = "Count from 3 to 9. " * 40
    first = turn(long, "NEW_SESSION")
    session_id, expires = first["NewSessionId"].split("; Expires=")
    assert expires.endswith("Z")
    assert first["CustomAttributes"] == "tenant=7"
    # Other connections, so either worker may answer.
    for _ in range(8):
        second = turn(long + "And now?", session_id)
        assert json.loads(second["Body"].read())["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    closed = runtime.invoke_endpoint(  # type: ignore[attr-defined]
        EndpointName="galley", ContentType="application/json", SessionId=session_id, Body=b'{"requestType": "CLOSE"}'
    )
    assert closed["ClosedSessionId"] == session_id
    with pytest.raises(runtime.exceptions.ModelError) as error:  # type: ignore[attr-defined]
        turn("Hello", session_id)
    assert error.value.response["OriginalStatusCode"] == 400
    assert f"session not found: {session_id}" in error.value.response["OriginalMessage"]


def test_boto3_sends_a_batch_of_lines(runtime: object, stack: Stack) -> None:
    prompts = [f"{text} {i}" for i in range(60) for text in ("Hello", "Count from 3 to")]
    lines = [{"prompt": text, "temperature": 0, "max_tokens": 8} for text in prompts]
    lines[7] = {"prompt": "x", "temperature": -1, "max_tokens": 8}
    response = runtime.invoke_endpoint(  # type: ignore[attr-defined]
        EndpointName="galley", ContentType="application/jsonlines", Body="\n".join(map(json.dumps, lines))
    )
    text = response["Body"].read().decode()
    assert text.endswith("\n")
    answers = [json.loads(line) for line in text.splitlines()]
    assert answers[7]["error"]["param"] == "temperature"
    _, whole = stack.post("/v1/completions", {"prompt": prompts, "temperature": 0, "max_tokens": 8})
    expected = [choice["text"] for choice in whole["choices"]]
    got = [answer["choices"][0]["text"] for i, answer in enumerate(answers) if i != 7]
    assert got == expected[:7] + expected[8:]
