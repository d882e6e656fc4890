"""`python -m sagemaker invoke` against the local endpoint, and against what it does not have."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import botocore.response
import botocore.stub
import pytest

from sagemaker.__main__ import main
from sagemaker.aws import Access, Aws
from sagemaker.calls import ToolError
from sagemaker.container import free_port
from sagemaker.deploy import Tool
from sagemaker.invoke import Request, async_call, invoke_async, plain_call, stream_call
from sagemaker.local import LocalEndpoint
from tests.unit.sagemaker.api_model import complaints
from tests.unit.sagemaker.fake_container import PIECES, FakeContainer

ROOT = Path(__file__).parents[3]


@pytest.fixture
def command(endpoint: LocalEndpoint, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs `invoke`; (exit status, stdout, stderr). No account is there."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")

    def run(*arguments: str) -> tuple[int, str, str]:
        status = main(["invoke", "mine", "--endpoint-url", endpoint.url, *arguments])
        return status, *capsys.readouterr()

    return run


def test_a_prompt_is_a_chat_of_one_turn(container: FakeContainer, command: Any) -> None:
    status, out, err = command("Grüße", "--system", "Be brief.", "--max-tokens", "7", "--temperature", "0")
    assert (status, out, err) == (0, "chat answer é\n", "")
    assert json.loads(container.bodies[-1]) == {
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Grüße"}],
        "max_tokens": 7,
        "temperature": 0.0,
    }


def test_a_prompt_that_is_streamed(container: FakeContainer, command: Any) -> None:
    status, out, err = command("Hi", "--stream")
    assert (status, out, err) == (0, "streamed 世界\n", "")
    assert json.loads(container.bodies[-1])["stream"] is True


@pytest.mark.parametrize("raw", [False, True])
def test_text_is_printed_as_it_comes(endpoint: LocalEndpoint, container: FakeContainer, raw: bool) -> None:
    prompt = ["--raw", "stream-then-hold"] if raw else ["hold the second half"]
    process = subprocess.Popen(
        [sys.executable, "-m", "sagemaker", "invoke", "mine", "--endpoint-url", endpoint.url, "--stream", *prompt],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None
    # The container holds the rest back until this has been read.
    first = PIECES[0] if raw else b"streamed"
    assert process.stdout.read(len(first)) == first
    assert not container.release.is_set()
    container.release.set()
    rest, _ = process.communicate(timeout=20)
    assert rest.endswith(PIECES[1] + b"\n" if raw else " 世界\n".encode())
    assert process.returncode == 0


def test_a_prompt_from_a_file_and_from_stdin(
    container: FakeContainer, command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prompt").write_text("from a file")
    assert command("--file", str(tmp_path / "prompt"))[0] == 0
    assert json.loads(container.bodies[-1])["messages"][0]["content"] == "from a file"
    stdin = SimpleNamespace(buffer=io.BytesIO(b"from stdin"), isatty=lambda: False)
    monkeypatch.setattr("sys.stdin", stdin)
    assert command()[0] == 0
    assert json.loads(container.bodies[-1])["messages"][0]["content"] == "from stdin"
    stdin.buffer = io.BytesIO(b"\xff")
    status, _, err = command()
    assert (status, "is not UTF-8" in err) == (1, True)
    stdin.buffer = io.BytesIO(b" \n")
    assert "the prompt is empty" in command()[2]
    assert "give a file that can be read" in command("--file", str(tmp_path / "none"))[2]


def test_a_raw_body_and_the_headers(command: Any) -> None:
    status, out, _ = command(
        *("--raw", "echo x", "--content-type", "text/x", "--accept", "text/y", "--session-id", "s-1"),
        *("--custom-attributes", "c=1", "--inference-id", "id-1", "--inference-component", "part"),
        *("--target-model", "m", "--target-variant", "blue"),
    )
    assert status == 0
    headers = json.loads(out)["headers"]
    assert (headers["content-type"], headers["accept"]) == ("text/x", "text/y")
    found = {name.removeprefix("x-amzn-sagemaker-"): value for name, value in headers.items() if "sagemaker" in name}
    assert found == {
        "session-id": "s-1",
        "custom-attributes": "c=1",
        "inference-id": "id-1",
        "inference-component": "part",
        "target-model": "m",
        "target-variant": "blue",
        "forwarded-api": "InvokeEndpoint",
    }


def test_a_session_says_how_to_go_on(command: Any, endpoint: LocalEndpoint) -> None:
    opened = "session Session-Id: a-1; Expires=2030-01-01T00:00:00Z"
    status, _, err = command("--raw", opened, "--session-id", "NEW_SESSION")
    assert status == 0
    assert err.splitlines() == [
        "session: a-1; Expires=2030-01-01T00:00:00Z",
        f"next: python -m sagemaker invoke mine 'And then?' --session-id a-1 --endpoint-url {endpoint.url}",
    ]
    assert "closed session: a-1" in command("--raw", "session Closed-Session-Id: a-1")[2]


def test_errors_of_the_container(command: Any) -> None:
    for way in ([], ["--stream"]):
        status, out, err = command("--raw", "status 503", *way)
        assert (status, out) == (1, "")
        assert 'the container answered 503: {"error": {"message": "nö"}}' in err
        assert "python -m sagemaker logs mine" in err or "python -m sagemaker logs" in err
        assert err.count("\n") == 1


def test_a_stream_that_breaks_off(command: Any) -> None:
    status, out, err = command("--raw", "stream-broken", "--stream")
    assert status == 1
    assert out == PIECES[0].decode() + "\n", "what came is shown, and its line ends"
    assert "broke its answer off" in err
    assert err.count("\n") == 1


def test_an_error_within_a_stream(command: Any) -> None:
    status, out, err = command("fail in the middle", "--stream")
    assert (status, out) == (1, "half\n")
    assert "the container broke off: no more memory (see `python -m sagemaker logs mine`)" in err


def test_an_asynchronous_request(command: Any, container: FakeContainer) -> None:
    status, out, err = command("Hi", "--async", "--wait", "--inference-id", "id-1")
    assert (status, out) == (0, "chat answer é\n")
    assert err == "accepted as id-1\n"
    status, out, err = command("Hi", "--async")
    assert (status, out) == (0, "")
    assert err.splitlines()[-1].startswith("next: curl -s file:///")
    status, _, err = command("--raw", "status 500", "--async", "--wait")
    assert status == 1
    assert 'the container failed: {"error": {"message": "nö"}}' in err
    status, _, err = command("--raw", "hold", "--async", "--wait", "--wait-s", "0.05")
    assert status == 1
    assert "no answer within 0.05 s" in err


def test_an_asynchronous_answer_in_s3(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    slept: list[float] = []
    said: list[str] = []
    written: list[str] = []
    tool = Tool(aws=Aws(Access(region="us-east-1")), say=said.append, sleep=slept.append)
    accepted = {
        "InferenceId": "id",
        "OutputLocation": "s3://bucket/out/1.out",
        "FailureLocation": "s3://bucket/out/1-error.out",
    }
    with (
        botocore.stub.Stubber(tool.aws.client("sagemaker-runtime")) as runtime,
        botocore.stub.Stubber(tool.aws.client("s3")) as s3,
    ):
        runtime.add_response("invoke_endpoint_async", accepted)
        s3.add_client_error("get_object", "NoSuchKey", expected_params={"Bucket": "bucket", "Key": "out/1.out"})
        s3.add_client_error("get_object", "NoSuchKey", expected_params={"Bucket": "bucket", "Key": "out/1-error.out"})
        body = b'{"generated_text": "done"}'
        s3.add_response("get_object", {"Body": botocore.response.StreamingBody(io.BytesIO(body), len(body))})
        invoke_async(tool, Request(endpoint="mine", body=b"{}"), written.append, wait_s=60)
        s3.assert_no_pending_responses()
    assert (written, slept, said) == (["done\n"], [0.2], ["accepted as id"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["Hi", "--file", "x"], "given twice"),
        (["--wait"], "--wait is for --async"),
        (["--input-location", "s3://bucket/x"], "--input-location is for --async"),
        (["Hi", "--stream", "--session-id", "NEW_SESSION"], "neither opens a session"),
        (["Hi", "--stream", "--target-model", "m"], "names a target model"),
        (["Hi", "--async", "--session-id", "s", "--target-variant", "v"], "has no SessionId, TargetVariant"),
        (["--async", "--input-location", "bucket/x"], "s3://BUCKET/PREFIX"),
        (["x" * 130_000, "--async"], "over 128000 bytes must lie in S3"),
    ],
)
def test_requests_that_cannot_be_made(command: Any, arguments: list[str], words: str) -> None:
    status, out, err = command(*arguments)
    assert (status, out) == (1, "")
    assert words in err


def test_nothing_listens(capsys: pytest.CaptureFixture[str]) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    assert main(["invoke", "mine", "Hi", "--endpoint-url", url]) == 1
    err = capsys.readouterr().err
    assert "Could not connect" in err
    assert "--endpoint-url" in err


def test_requests_are_ones_that_aws_takes() -> None:
    headers = {"Accept": "a", "CustomAttributes": "c", "InferenceId": "i"}
    more = {"SessionId": "s", "InferenceComponentName": "x", "TargetVariant": "v"}
    plain = Request(endpoint="mine", body=b"{}", headers={**headers, **more, "TargetModel": "m"})
    streamed = Request(endpoint="mine", body=b"{}", headers={**headers, **more})
    inline = Request(endpoint="mine", body=b"{}", headers=headers)
    placed = Request(endpoint="mine", body=b"", headers=headers, input_location="s3://bucket/key")
    for call in (plain_call(plain), stream_call(streamed), async_call(inline), async_call(placed)):
        assert complaints(call) == []
    assert "Body" not in async_call(placed).parameters
    with pytest.raises(ToolError, match="endpoint name"):
        plain_call(Request(endpoint="a_b", body=b""))


def test_output_that_nobody_reads_any_more(endpoint: LocalEndpoint) -> None:
    arguments = f"invoke mine --endpoint-url {endpoint.url} --raw stream-forever --stream"
    result = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m sagemaker {arguments} | head -c 0; exit ${{PIPESTATUS[0]}}"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert "Traceback" not in result.stderr
    assert "Exception ignored" not in result.stderr
