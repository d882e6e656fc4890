"""The other routes: health, models, TGI's format, errors of every kind, and OpenAI's own client over all of them."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import openai
import pytest
from flask.testing import FlaskClient
from openai import OpenAI

from container.served_model import ServedModel
from tests.http.conftest import REPLY
from tests.http.scripted_engine import ScriptedEngine, scripted_logprob, wait_until
from tests.http.web_process import running_web

HI: list[Any] = [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_ping(http: FlaskClient, engine: ScriptedEngine, method: str) -> None:
    response = http.open("/ping", method=method)
    assert (response.status_code, response.data) == (200, b"")
    engine.state = "starting"
    wait_until(lambda: http.open("/ping", method=method).status_code == 503)
    response = http.open("/ping", method=method)
    assert response.get_json() == {"status": "starting", "stage": "is starting"}
    assert http.post("/v1/completions", json={"prompt": "a"}).status_code == 503
    assert http.post("/v1/completions", json={"prompt": "a"}).headers["Retry-After"] == "2"
    engine.state = "ready"
    wait_until(lambda: http.get("/ping").status_code == 200)


def test_ping_is_answered_while_a_prompt_is_tokenised(
    http: FlaskClient, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, is_answered = threading.Event(), threading.Event()
    waited: list[bool] = []

    def encode(*_: Any, **__: Any) -> list[int]:
        begun.set()
        waited.append(is_answered.wait(5))
        return [1]

    monkeypatch.setattr(ServedModel, "encode", encode)
    # Short bodies are tokenised at once.
    body = {"prompt": "a", "user": "x" * 50_000, "max_tokens": 2}
    asking = gevent.spawn(http.application.test_client().post, "/v1/completions", json=body)
    wait_until(begun.is_set)
    assert http.get("/ping").status_code == 200
    is_answered.set()
    assert asking.get(timeout=20).status_code == 200
    assert waited == [True]


def test_models(http: FlaskClient, engine: ScriptedEngine) -> None:
    model = http.get("/v1/models").get_json()["data"][0]
    assert model["id"] == "tiny"
    assert http.get("/v1/models/tiny").get_json() == model
    assert http.get("/v1/models/a/b").status_code == 404


def test_tgi_whole(http: FlaskClient, engine: ScriptedEngine) -> None:
    assert http.post("/invocations", json={"inputs": "Say: "}).get_json() == [{"generated_text": REPLY}]
    assert engine.generated[-1].params.temperature == 0
    assert engine.generated[-1].params.max_tokens == 100
    sent = {"inputs": "Say: ", "parameters": {"return_full_text": True, "max_new_tokens": 5, "temperature": 0.5}}
    assert http.post("/invocations", json=sent).get_json() == [{"generated_text": "Say: Hello"}]
    assert engine.generated[-1].params.temperature == 0.5
    sent = {"inputs": "a", "parameters": {"do_sample": False, "stop_sequences": [","]}}
    assert http.post("/invocations", json=sent).get_json() == [{"generated_text": "Hello"}]
    assert engine.generated[-1].params.temperature == 0


def test_tgi_stream(http: FlaskClient, engine: ScriptedEngine) -> None:
    response = http.post("/invocations", json={"inputs": "a", "stream": True})
    lines = response.text.removesuffix("\n\n").split("\n\n")
    assert all(line.startswith("data: ") for line in lines)
    events = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert [event["index"] for event in events] == list(range(1, len(REPLY.encode()) + 2))
    assert "".join(event["token"]["text"] for event in events) == REPLY
    assert events[-1]["token"]["special"]
    assert [event["generated_text"] for event in events if event["generated_text"]] == [REPLY]
    assert [event["token"]["logprob"] for event in events] == [scripted_logprob(0, i) for i in range(len(events))]
    assert engine.generated[-1].params.logprobs == 0
    assert all(set(event) == {"index", "token", "generated_text", "details"} for event in events)
    assert set(events[0]["token"]) == {"id", "text", "logprob", "special"}


def test_tgis_tokens_have_their_own_text_however_many_come_together(
    http: FlaskClient, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stream(**parameters: Any) -> list[tuple[str, str | None]]:
        response = http.post("/invocations", json={"inputs": "a", "parameters": parameters, "stream": True})
        events = [json.loads(line.removeprefix("data: ")) for line in response.text.split("\n\n") if line]
        assert "".join(event["token"]["text"] for event in events) == events[-1]["generated_text"]
        return [event["token"]["text"] for event in events]

    each = [*REPLY.split("ö")[0], "", "ö", *REPLY.split("ö")[1], ""]  # two bytes, two tokens; the last one ends it
    for step_s in (0.0, 0.01):
        engine.step_s = step_s
        assert stream() == each
    # What may be a stop string is held back, and stays with tokens whose text it is where it can.
    engine.step_s = 0.0
    assert "".join(stream(stop=["world"])) == REPLY
    assert "".join(stream(stop=["One"])) == REPLY.partition("One")[0]


def test_many_prompts_keep_their_order(http: FlaskClient, engine: ScriptedEngine) -> None:
    body = http.post("/v1/completions", json={"prompt": ["a", "bc"], "n": 2, "max_tokens": 5}).get_json()
    assert [(c["index"], c["text"], c["finish_reason"]) for c in body["choices"]] == [
        (i, "Hello", "length") for i in range(4)
    ]
    assert body["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 20,
        "total_tokens": 23,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("POST", "/v1/nothing", 404),
        ("POST", "//v1/completions", 404),
        ("GET", "/ping/", 404),
        ("GET", "/v1/chat/completions", 405),
        ("PUT", "/invocations", 405),
        ("BREW", "/ping", 405),
    ],
)
def test_http_errors_have_openais_body(http: FlaskClient, method: str, path: str, status: int) -> None:
    response = http.open(path, method=method)
    assert response.status_code == status
    assert set(response.get_json()["error"]) == {"message", "type", "param", "code"}
    assert ("Allow" in response.headers) == (status == 405)


def test_an_unexpected_error_is_500_without_a_traceback(
    http: FlaskClient, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("secret /path")

    monkeypatch.setattr("container.routes.models._model", fail)
    response = http.get("/v1/models")
    assert response.status_code == 500
    assert "secret" not in response.text
    assert "secret" in caplog.text


def test_request_ids(http: FlaskClient) -> None:
    assert http.get("/v1/nothing", headers={"X-Request-Id": "abc-1"}).headers["X-Request-Id"] == "abc-1"
    assert http.get("/ping", headers={"X-Request-Id": "a<b>\u00e9" + "x" * 500}).headers["X-Request-Id"] == (
        "ab" + "x" * 126
    )
    assert len(http.get("/ping").headers["X-Request-Id"]) == 32


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, shared_engine: ScriptedEngine) -> Iterator[OpenAI]:
    directory: Path = tmp_path_factory.mktemp("web")
    with running_web(directory, shared_engine.path) as web:
        yield OpenAI(
            base_url=f"{web.url}/v1", api_key="none", max_retries=0, timeout=20, _strict_response_validation=True
        )


def test_openai_client_accepts_our_chat(client: OpenAI, engine: ScriptedEngine) -> None:
    answer = client.chat.completions.create(model="tiny", messages=HI, n=2)
    assert [choice.message.content for choice in answer.choices] == [REPLY] * 2
    again = client.chat.completions.create(
        model="", messages=[*HI, answer.choices[0].message.model_dump(), *HI], max_completion_tokens=5
    )
    assert again.choices[0].finish_reason == "length"
    chunks = list(
        client.chat.completions.create(model="tiny", messages=HI, stream=True, stream_options={"include_usage": True})
    )
    assert "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices) == REPLY
    assert chunks[-1].usage is not None
    with client.chat.completions.stream(model="tiny", messages=HI) as stream:
        assert stream.get_final_completion().choices[0].message.content == REPLY


def test_openai_client_accepts_our_completions_models_and_errors(client: OpenAI, engine: ScriptedEngine) -> None:
    completion = client.completions.create(model="tiny", prompt=["a", "b"], max_tokens=5)
    assert [choice.text for choice in completion.choices] == ["Hello"] * 2
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError) as not_found:
        client.models.retrieve("other")
    assert not_found.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="tiny", messages=HI, temperature=-1)
    assert refused.value.param == "temperature"
    engine.failure = ("overloaded", "Full.")
    with pytest.raises(openai.RateLimitError):
        client.chat.completions.create(model="tiny", messages=HI)


def test_openai_client_reads_our_logprobs_and_cached_tokens(client: OpenAI, engine: ScriptedEngine) -> None:
    engine.num_cached_tokens = 2
    answer = client.chat.completions.create(model="tiny", messages=HI, logprobs=True, top_logprobs=2, n=2)
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 2
    for i, choice in enumerate(answer.choices):
        assert choice.logprobs is not None
        assert choice.logprobs.content is not None
        assert [entry.logprob for entry in choice.logprobs.content[:2]] == [
            scripted_logprob(i, 0),
            scripted_logprob(i, 1),
        ]
        assert [top.token for top in choice.logprobs.content[0].top_logprobs] == ["H", "I"]
    with client.chat.completions.stream(model="tiny", messages=HI, logprobs=True) as stream:
        streamed = stream.get_final_completion().choices[0].logprobs
    first = answer.choices[0].logprobs
    assert streamed is not None
    assert streamed.content is not None
    assert first is not None
    assert [(e.token, e.logprob) for e in streamed.content] == [(e.token, e.logprob) for e in first.content or []]
    completion = client.completions.create(model="tiny", prompt="a", max_tokens=3, logprobs=1, n=2, best_of=3)
    assert [choice.text for choice in completion.choices] == ["Hel"] * 2
    assert completion.choices[0].logprobs is not None
    assert completion.choices[0].logprobs.tokens == ["H", "e", "l"]
    assert completion.choices[0].logprobs.top_logprobs == [
        {token: scripted_logprob(0, i)} for i, token in enumerate("Hel")
    ]
    extra = {"min_p": 0.1, "repetition_penalty": 1.1, "bad_words": ["x"], "priority": 1, "cache_salt": "s"}
    client.chat.completions.create(
        model="tiny", messages=HI, presence_penalty=0.5, frequency_penalty=0.5, logit_bias={"5": 1}, extra_body=extra
    )
    request = engine.generated[-1]
    assert (request.params.logit_bias, request.priority, request.cache_salt) == ({5: 1.0}, 1, "s")


def test_openai_client_streams_our_completions(client: OpenAI, engine: ScriptedEngine) -> None:
    # OpenAI's own type has no null for finish_reason, which OpenAI's own stream sends: not strict here.
    lenient = client.with_options()
    lenient._strict_response_validation = False
    chunks = list(lenient.completions.create(model="tiny", prompt="a", max_tokens=5, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "Hello"


def test_openai_client_raises_on_an_error_in_the_stream(client: OpenAI, engine: ScriptedEngine) -> None:
    engine.step_s = 0.05
    stream = client.chat.completions.create(model="tiny", messages=HI, stream=True)
    next(stream)
    engine.die()
    try:
        with pytest.raises(openai.APIError, match="stopped"):
            list(stream)
    finally:
        engine.start()
