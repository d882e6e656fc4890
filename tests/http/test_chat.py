"""/v1/chat/completions: what is sent to the engine and what comes back."""

import json
from typing import Any

from flask.testing import FlaskClient

from container.app import create_app
from container.config import ServerConfig
from container.engine_client import EngineClient
from engine.text import Tokenizer
from tests.http.conftest import REPLY
from tests.http.scripted_engine import ScriptedEngine, wait_until

HI = [{"role": "user", "content": "Hi"}]
URL = "/v1/chat/completions"


def events(body: bytes) -> list[Any]:
    """The events of a stream; `[DONE]` as it is."""
    lines = [line.removeprefix("data: ") for line in body.decode().split("\n\n") if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def test_every_stream_counts_its_tokens_where_the_operator_says_so(
    engine_client: EngineClient, engine: ScriptedEngine
) -> None:
    http = create_app(engine_client, ServerConfig(always_include_usage=True)).test_client()
    for url, body in ((URL, {"messages": HI}), ("/v1/completions", {"prompt": "a"})):
        parts = events(http.post(url, json={**body, "max_tokens": 3, "stream": True}).data)
        assert parts[-1] == "[DONE]"
        assert parts[-2]["usage"]["completion_tokens"] == 3
        assert parts[0]["usage"] is None


def test_whole(http: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer) -> None:
    response = http.post(URL, json={"messages": HI})
    assert response.status_code == 200
    body = response.get_json()
    assert body.pop("id").startswith("chatcmpl-")
    assert body.pop("created") > 0
    num_prompt = len("<user>Hi<assistant>")
    num_output = len(REPLY.encode()) + 1
    assert body == {
        "object": "chat.completion",
        "model": "tiny",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": REPLY, "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": num_prompt,
            "completion_tokens": num_output,
            "total_tokens": num_prompt + num_output,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
    }
    request = engine.generated[0]
    assert tokenizer.decode(request.prompt_token_ids) == "<user>Hi<assistant>"
    assert request.params.max_tokens is None
    assert request.params.temperature == 0.7


def test_stream(http: FlaskClient, engine: ScriptedEngine) -> None:
    response = http.post(URL, json={"messages": HI, "stream": True, "stream_options": {"include_usage": True}})
    assert response.content_type.startswith("text/event-stream")
    got = events(response.data)
    assert got[-1] == "[DONE]"
    assert got[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    text = "".join(c["delta"].get("content", "") for e in got[:-1] for c in e["choices"])
    assert text == REPLY
    assert got[-2]["choices"] == []
    assert got[-2]["usage"]["completion_tokens"] == len(REPLY.encode()) + 1
    assert got[-3]["choices"][0]["finish_reason"] == "stop"
    assert all(e["usage"] is None for e in got[:-2])
    assert len({e["id"] for e in got[:-1]}) == 1


def test_n_choices_and_a_stop_string_that_ends_them_early(http: FlaskClient, engine: ScriptedEngine) -> None:
    engine.step_s = 0.002
    body = http.post(URL, json={"messages": HI, "n": 3, "stop": ["One"]}).get_json()
    assert [(c["index"], c["message"]["content"]) for c in body["choices"]] == [(i, "Hello, wörld! ") for i in range(3)]
    assert {c["finish_reason"] for c in body["choices"]} == {"stop"}
    assert body["usage"]["completion_tokens"] == 3 * len("Hello, wörld! One".encode())
    wait_until(lambda: len(engine.aborted) == 3)
    assert {abort.index for _, abort in engine.aborted} == {0, 1, 2}


def test_max_tokens(http: FlaskClient, engine: ScriptedEngine) -> None:
    body = http.post(URL, json={"messages": HI, "max_tokens": 400, "max_completion_tokens": 5}).get_json()
    assert body["choices"][0]["message"]["content"] == "Hello"
    assert body["choices"][0]["finish_reason"] == "length"


def test_the_template_sees_tools_and_kwargs(http: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    kwargs = {"shout": True}
    messages = [{"role": "developer", "content": "S"}, {"role": "user", "content": [{"type": "text", "text": "U"}]}]
    for tool_choice, shown in (("auto", "[tool f]"), ("none", "")):
        sent = {"messages": messages, "tools": tools, "tool_choice": tool_choice, "chat_template_kwargs": kwargs}
        assert http.post(URL, json=sent).status_code == 200
        prompt = tokenizer.decode(engine.generated[-1].prompt_token_ids)
        assert prompt == shown + "LOUD <system>S<user>U<assistant>"
