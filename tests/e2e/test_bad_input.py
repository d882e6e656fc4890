"""Bad input of every kind gets a 4xx with an OpenAI error body that names the field; nothing crashes, nothing leaks."""

import http.client
import json
from typing import Any

import pytest

from tests.e2e.stack import ROOT, Stack

HI = [{"role": "user", "content": "hi"}]
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"

CASES: list[tuple[str, Any, int, str | None]] = [
    (CHAT, b"not json", 400, None),
    (CHAT, b"", 400, None),
    (CHAT, b'"text"', 400, None),
    (CHAT, b"[]", 400, None),
    (CHAT, b'{"messages": [{"role": "user", "content": "\xff"}]}', 400, None),
    (CHAT, b"[" * 100_000, 400, None),
    (CHAT, {}, 400, "messages"),
    (CHAT, {"messages": []}, 400, "messages"),
    (CHAT, {"messages": "hi"}, 400, "messages"),
    (CHAT, {"messages": [{"role": "wizard", "content": "hi"}]}, 400, "messages[0].role"),
    (CHAT, {"messages": [{"role": "user", "content": 5}]}, 400, "messages[0].content"),
    (CHAT, {"messages": [{"content": "hi"}]}, 400, "messages[0].role"),
    (CHAT, {"messages": HI, "temperature": "hot"}, 400, "temperature"),
    (CHAT, {"messages": HI, "temperature": -1}, 400, "temperature"),
    (CHAT, {"messages": HI, "top_p": 0}, 400, "top_p"),
    (CHAT, {"messages": HI, "n": 10**9}, 400, "n"),
    (CHAT, {"messages": HI, "n": True}, 400, "n"),
    (CHAT, {"messages": HI, "max_tokens": 0}, 400, "max_tokens"),
    (CHAT, {"messages": HI, "max_tokens": 10**9}, 400, "max_tokens"),
    (CHAT, {"messages": HI, "max_tokens": 10**30}, 400, "max_tokens"),
    (CHAT, {"messages": HI, "seed": 1.5}, 400, "seed"),
    (CHAT, {"messages": HI, "stop": [""]}, 400, "stop"),
    (CHAT, {"messages": HI, "stop": ["x"] * 100}, 400, "stop"),
    (CHAT, {"messages": HI, "stream_options": {"include_usage": True}}, 400, "stream_options"),
    (CHAT, {"messages": HI, "presence_penalty": 2.5}, 400, "presence_penalty"),
    (CHAT, {"messages": HI, "top_logprobs": 2}, 400, "top_logprobs"),
    (CHAT, {"messages": HI, "response_format": {"type": "json_object"}}, 400, "response_format"),
    (CHAT, {"messages": HI, "temprature": 1}, 400, "temprature"),
    (CHAT, {"messages": HI, "model": "gpt-none"}, 404, "model"),
    (CHAT, {"messages": HI, "stop_token_ids": [10**7]}, 400, "stop_token_ids"),
    (COMPLETIONS, {}, 400, "prompt"),
    (COMPLETIONS, {"prompt": []}, 400, "prompt"),
    (COMPLETIONS, {"prompt": ""}, 400, "prompt"),
    (COMPLETIONS, {"prompt": [10**7]}, 400, "prompt"),
    (COMPLETIONS, {"prompt": [-1]}, 400, "prompt"),
    (COMPLETIONS, {"prompt": [5] * 20_000}, 400, "prompt"),
    (COMPLETIONS, {"prompt": "word " * 100_000}, 400, "prompt"),
    (COMPLETIONS, {"prompt": "x" * 30_000_000}, 400, "prompt"),
    (CHAT, {"messages": [{"role": "user", "content": "y " * 15_000_000}]}, 400, "messages"),
    (CHAT, {"messages": HI, "tools": [{"type": "function", "function": {"name": "f"}}] * 400_000}, 400, "tools"),
    (CHAT, {"messages": HI, "tools": [{"type": "function", "function": {"name": "f"}}] * 1025}, 400, "tools"),
    (CHAT, {"messages": HI, "chat_template_kwargs": {"a": [1] * 10_000_000}}, 400, "chat_template_kwargs"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": "h"}] * 1_000_000}]}, 400, "messages"),
    (COMPLETIONS, {"prompt": [1] * 10_000_000}, 400, "prompt"),
    (COMPLETIONS, {"prompt": [[1]] * 5_000_000}, 400, "prompt"),
    (COMPLETIONS, {"prompt": ["a"] * 5_000_000}, 400, "prompt"),
    ("/invocations", {"inputs": "x" * 30_000_000}, 400, "inputs"),
    ("/invocations", {}, 400, None),
    ("/invocations", {"inputs": 5}, 400, "inputs"),
    ("/invocations", {"inputs": "hi", "parameters": {"max_new_tokens": -1}}, 400, "parameters.max_new_tokens"),
    ("/v1/nothing", {}, 404, None),
]


def name(case: Any) -> str:
    return case[:40].decode(errors="replace") if isinstance(case, bytes) else str(case)[:60]


@pytest.mark.parametrize(("path", "body", "status", "param"), CASES, ids=name)
def test_bad_input_names_its_field(stack: Stack, path: str, body: Any, status: int, param: str | None) -> None:
    got, answer = stack.post(path, body)
    assert got == status, answer
    error = answer["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param
    assert "Traceback" not in error["message"]
    assert str(ROOT) not in error["message"]
    assert len(error["message"]) < 1000


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", CHAT, 405),
        ("DELETE", "/v1/models", 405),
        ("PUT", "/invocations", 405),
        ("GET", "/", 404),
        ("GET", "/../../etc/passwd", 404),
        ("BREW", "/ping", 405),
    ],
)
def test_unknown_routes_and_methods(stack: Stack, method: str, path: str, status: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", stack.port, timeout=30)
    connection.request(method, path)
    response = connection.getresponse()
    assert response.status == status
    assert set(json.loads(response.read())["error"]) == {"message", "type", "param", "code"}
    connection.close()


def test_a_body_over_the_limit_is_413(stack: Stack) -> None:
    """Announced by Content-Length: refused before it is sent; chunked: refused as soon as it is too long."""
    connection = http.client.HTTPConnection("127.0.0.1", stack.port, timeout=30)
    connection.putrequest("POST", CHAT)
    connection.putheader("Content-Type", "application/json")
    connection.putheader("Content-Length", str(101 * 2**20))
    connection.endheaders()
    response = connection.getresponse()
    assert response.status == 413
    assert json.loads(response.read())["error"]["type"] == "invalid_request_error"
    connection.close()


def test_nothing_leaks(stack: Stack) -> None:
    with stack.watch() as watch:
        watch.wait_idle()
    assert stack.ping() == 200
    assert stack.chat("hi")
