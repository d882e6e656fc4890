"""/invocations as SageMaker's platform and clients use it: headers, forms of the answer, and what is answered later."""

import json
from typing import Any

import pytest
from flask.testing import FlaskClient

from container.app import create_app
from container.config import ServerConfig
from container.engine_client import EngineClient
from container.schema.invocation import read_headers
from tests.http.conftest import REPLY
from tests.http.scripted_engine import ScriptedEngine

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}]}
TGI: dict[str, Any] = {"inputs": "a"}
STREAM_CALL = {"X-Amzn-SageMaker-Forwarded-Api": "InvokeEndpointWithResponseStream"}
EVENTS, LINES = "text/event-stream; charset=utf-8", "application/jsonlines"


def test_a_list_of_inputs_is_answered_in_order(http: FlaskClient, engine: ScriptedEngine) -> None:
    engine.echoes = True
    texts = ["one", "a second", "3"]
    answer = http.post("/invocations", json={"inputs": texts, "parameters": {"return_full_text": True}}).get_json()
    assert answer == [{"generated_text": text + text} for text in texts]
    engine.echoes = False
    parameters = {"best_of": 2, "do_sample": True, "details": True, "max_new_tokens": 3}
    answer = http.post("/invocations", json={"inputs": ["a", "b"], "parameters": parameters}).get_json()
    assert [part["generated_text"] for part in answer] == ["Hel", "Hel"]
    assert all(len(part["details"]["best_of_sequences"]) == 1 for part in answer)


def test_lmis_clients_get_lmis_form(engine_client: EngineClient, engine: ScriptedEngine) -> None:
    http = create_app(engine_client, ServerConfig(inputs_form="lmi")).test_client()
    assert http.post("/invocations", json=TGI).get_json() == {"generated_text": REPLY[:30]}
    assert engine.generated[-1].params.max_tokens == 30
    parameters = {"max_new_tokens": 2, "details": True, "min_p": 0.1, "presence_penalty": 1, "ignore_eos_token": True}
    answer = http.post("/invocations", json={"inputs": "a", "parameters": parameters}).get_json()
    assert (answer["generated_text"], answer["details"]["generated_tokens"]) == ("He", 2)
    params = engine.generated[-1].params
    assert (params.min_p, params.presence_penalty, params.ignore_eos) == (0.1, 1.0, True)
    short = {"parameters": {"max_new_tokens": 2}}
    assert http.post("/invocations", json={"inputs": ["a"], **short}).get_json() == [{"generated_text": "He"}]
    stream = http.post("/invocations", json={**TGI, **short, "stream": True})
    assert stream.content_type == LINES
    parts = [json.loads(line) for line in stream.text.splitlines()]
    assert [part["token"]["text"] for part in parts] == ["H", "e"]
    assert all(part["token"]["log_prob"] == part["token"]["logprob"] for part in parts)
    assert [part["generated_text"] for part in parts] == [None, "He"]
    # Whoever names events gets them.
    for body in ({**TGI, **short}, CHAT):
        lines = http.post("/invocations", json={**body, "stream": True})
        assert (lines.content_type, lines.text[0]) == (LINES, "{")
        stream = http.post("/invocations", json={**body, "stream": True}, headers={"Accept": EVENTS})
        assert stream.content_type == EVENTS
        assert stream.text.startswith("data: ")
    line = http.post("/invocations", data=json.dumps({**TGI, **short}), content_type=LINES).get_data()
    assert json.loads(line) == {"generated_text": "He"}


@pytest.mark.parametrize("body", [CHAT, TGI], ids=["chat", "tgi"])
@pytest.mark.parametrize(
    ("headers", "stream", "content_type"),
    [
        ({}, None, "application/json"),
        ({}, True, EVENTS),
        (STREAM_CALL, None, EVENTS),
        (STREAM_CALL, False, "application/json"),
        ({"X-Amzn-SageMaker-Forwarded-Api": "InvokeEndpoint"}, None, "application/json"),
        ({"Accept": "text/event-stream"}, None, EVENTS),
        ({"Accept": "text/event-stream, application/json"}, None, "application/json"),
        ({"Accept": "application/json"}, True, EVENTS),  # OpenAI's client sends that for streams too
        ({"Accept": "application/jsonlines"}, True, LINES),
        ({"Accept": "application/x-ndjson", **STREAM_CALL}, None, LINES),
        ({"Accept": "application/jsonlines"}, None, LINES),
        ({"Accept": "application/jsonlines, */*"}, None, "application/json"),
    ],
)
def test_headers_and_field_choose_the_form(
    http: FlaskClient,
    engine: ScriptedEngine,
    body: dict[str, Any],
    headers: dict[str, str],
    stream: bool | None,
    content_type: str,
) -> None:
    response = http.post("/invocations", json={**body, "stream": stream}, headers=headers)
    assert (response.status_code, response.content_type) == (200, content_type)
    assert response.text.startswith("data: ") == (content_type == EVENTS)
    if content_type == LINES:
        lines = [json.loads(line) for line in response.text.removesuffix("\n").split("\n")]
        is_stream = stream or "X-Amzn-SageMaker-Forwarded-Api" in headers
        assert (len(lines) > 1) == bool(is_stream)
        assert response.text.endswith("\n")


def test_a_stream_of_json_lines_holds_what_the_events_hold(http: FlaskClient, engine: ScriptedEngine) -> None:
    events = http.post("/invocations", json={**TGI, "stream": True}).text
    lines = http.post("/invocations", json={**TGI, "stream": True}, headers={"Accept": "application/jsonlines"}).text
    # Text may come in other pieces: what has come meanwhile is sent together.
    parts = [json.loads(line.removeprefix("data: ")) for line in events.split("\n\n") if line]
    same = [json.loads(line) for line in lines.splitlines()]
    assert [set(part) for part in same] == [set(part) for part in parts]
    for one in (parts, same):
        assert "".join(part["token"]["text"] for part in one) == REPLY
        assert [part["index"] for part in one] == list(range(1, len(one) + 1))
    assert json.loads(lines.splitlines()[-1])["generated_text"] == REPLY
    chat = http.post("/invocations", json={**CHAT, "stream": True}, headers={"Accept": "application/jsonlines"}).text
    deltas = [json.loads(line)["choices"][0]["delta"].get("content", "") for line in chat.splitlines()]
    assert "".join(deltas) == REPLY
    assert "[DONE]" not in chat


@pytest.mark.parametrize(
    ("accept", "is_served"),
    [
        ("", True),
        ("*/*", True),
        ("application/*;q=0.5", True),
        ("APPLICATION/JSON; charset=utf-8", True),
        ("text/csv, application/json", True),
        ("text/csv", False),
        ("application/json;q=0", False),
        ("application/x-npy", False),
    ],
)
def test_an_answer_that_the_client_does_not_take_is_406(
    http: FlaskClient, engine: ScriptedEngine, accept: str, is_served: bool
) -> None:
    response = http.post("/invocations", json=TGI, headers={"Accept": accept})
    assert response.status_code == (200 if is_served else 406)
    if not is_served:
        assert response.get_json()["error"]["code"] == "not_acceptable"
        assert not engine.generated


def test_type_length_and_emptiness_of_a_body(http: FlaskClient, engine: ScriptedEngine) -> None:
    for body in (b"", b" \n"):
        response = http.post("/invocations", data=body, content_type="application/json")
        assert (response.status_code, response.data) == (204, b"")
        assert "Content-Type" not in response.headers
    assert http.post("/invocations", data=b"", content_type="application/jsonlines").status_code == 204
    response = http.post("/invocations", data=b"a,b", content_type="text/csv")
    assert (response.status_code, response.get_json()["error"]["code"]) == (415, "unsupported_media_type")
    assert "application/jsonlines" in response.get_json()["error"]["message"]
    response = http.post("/v1/completions", data=b"{}", content_type="application/jsonlines")
    assert response.status_code == 415
    assert "application/jsonlines" not in response.get_json()["error"]["message"]
    response = http.post("/invocations", data=b" " * (2**20 + 1), content_type="application/json")
    assert (response.status_code, response.get_json()["error"]["code"]) == (413, "body_too_large")


def test_a_byte_order_mark_is_no_part_of_the_body(http: FlaskClient, engine: ScriptedEngine) -> None:
    marked = b"\xef\xbb\xbf" + json.dumps(TGI).encode()
    assert http.post("/invocations", data=marked, content_type="application/json").status_code == 200
    response = http.post("/invocations", data=marked + b"\n" + marked[3:], content_type="application/jsonlines")
    lines = [json.loads(line) for line in response.data.splitlines()]
    assert len(lines) == 2
    assert not any("error" in line for line in lines)


def test_a_body_of_25_mb_is_read(engine_client: EngineClient, engine: ScriptedEngine) -> None:
    http = create_app(engine_client, ServerConfig()).test_client()
    body = json.dumps({**TGI, "parameters": {"stop": [" " * 25_000_000]}}).encode()
    response = http.post("/invocations", data=body, content_type="application/json")
    # Read to its end, and refused for what it holds.
    assert (response.status_code, response.get_json()["error"]["param"]) == (400, "parameters")
    padded = json.dumps(TGI).encode() + b" " * 25_000_000
    assert http.post("/invocations", data=padded, content_type="application/json").status_code == 200


def test_custom_attributes_and_inference_id_come_back(http: FlaskClient, engine: ScriptedEngine) -> None:
    headers = {"X-Amzn-SageMaker-Custom-Attributes": "tenant=7,x", "X-Amzn-SageMaker-Inference-Id": "call-1"}
    for response in (
        http.post("/invocations", json=TGI, headers=headers),
        http.post("/invocations", json={}, headers=headers),  # an error too
    ):
        assert response.headers["X-Amzn-SageMaker-Custom-Attributes"] == "tenant=7,x"
        assert response.headers["X-Amzn-SageMaker-Inference-Id"] == "call-1"
        assert response.headers["X-Request-Id"] == "call-1"
    plain = http.post("/invocations", json=TGI)
    assert not [name for name, _ in plain.headers if name.startswith("X-Amzn")]
    hostile = {"X-Amzn-SageMaker-Custom-Attributes": "a\x80\xe9b" + "c" * 2000}
    echoed = http.post("/invocations", json=TGI, headers=hostile).headers["X-Amzn-SageMaker-Custom-Attributes"]
    assert echoed == "ab" + "c" * 1022


def test_the_inference_id_is_in_the_log(
    http: FlaskClient, engine: ScriptedEngine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    http.post("/invocations", json={}, headers={"X-Amzn-SageMaker-Inference-Id": "call-2"})
    assert "request call-2: 400" in caplog.text


def test_a_route_in_the_custom_attributes_answers(http: FlaskClient, engine: ScriptedEngine) -> None:
    def post(body: Any, attributes: str) -> Any:
        return http.post("/invocations", json=body, headers={"X-Amzn-SageMaker-Custom-Attributes": attributes})

    assert post(CHAT, "route=/v1/chat/completions").get_json()["object"] == "chat.completion"
    completion = post({"prompt": "a", "max_tokens": 2}, "tenant=7, route=/v1/completions,x=1").get_json()
    assert completion["object"] == "text_completion"
    for spelling in ("Route=/v1/completions", 'route="/v1/completions"', "route=/v1/completions/;x"):
        assert post({"prompt": "a", "max_tokens": 2}, spelling).get_json()["object"] == "text_completion"
    assert post(CHAT, "my_route=/v1/completions").get_json()["object"] == "chat.completion"
    # The route decides, not the fields.
    assert post(CHAT, "route=/v1/completions").get_json()["error"]["param"] == "messages"
    for unknown in ("/v1/models", "/ping", "/../etc/passwd", "v1/completions", ""):
        error = post(CHAT, f"route={unknown}").get_json()["error"]
        assert error["param"] == "X-Amzn-SageMaker-Custom-Attributes"
        assert f"'{unknown}'" in error["message"]


@pytest.mark.parametrize("header", ["X-Amzn-SageMaker-Target-Model", "X-Amzn-SageMaker-Adapter-Identifier"])
def test_a_header_that_names_another_model_is_404(http: FlaskClient, engine: ScriptedEngine, header: str) -> None:
    assert http.post("/invocations", json=TGI, headers={header: "tiny"}).status_code == 200
    response = http.post("/invocations", json=TGI, headers={header: "other.tar.gz"})
    assert response.status_code == 404
    error = response.get_json()["error"]
    assert (error["code"], error["param"]) == ("model_not_found", header)
    assert "'other.tar.gz'" in error["message"]
    assert len(engine.generated) == 1


def test_what_the_platform_routes_by_changes_nothing(http: FlaskClient, engine: ScriptedEngine) -> None:
    names = (
        "Prefix-Aware-Id",
        "Target-Variant",
        "Target-Container-Hostname",
        "Inference-Component",
        "Enable-Explanations",
    )
    headers = {f"X-Amzn-SageMaker-{name}": "x" for name in names}
    assert http.post("/invocations", json=TGI, headers=headers).status_code == 200
    assert engine.generated[-1].cache_salt == ""


@pytest.mark.parametrize("field", ["input", "documents", "query", "text_1", "instances"])
def test_bodies_of_other_kinds_of_model_are_refused_by_name(
    http: FlaskClient, engine: ScriptedEngine, field: str
) -> None:
    response = http.post("/invocations", json={"model": "tiny", field: ["a"]})
    assert response.status_code == 400
    error = response.get_json()["error"]
    assert error["param"] == field
    assert "not served here" in error["message"]


@pytest.mark.parametrize("is_batch", [False, True])
def test_execution_parameters(engine_client: EngineClient, is_batch: bool) -> None:
    http = create_app(engine_client, ServerConfig(batch_transform=is_batch)).test_client()
    found = http.get("/execution-parameters").get_json()
    assert found == {"MaxConcurrentTransforms": 4, "BatchStrategy": "MULTI_RECORD", "MaxPayloadInMB": 6}
    # The platform's own limit on the two.
    assert found["MaxConcurrentTransforms"] * found["MaxPayloadInMB"] <= 100
    settings = ServerConfig(batch_strategy="SINGLE_RECORD", batch_max_concurrent_transforms=2, batch_max_payload_mb=50)
    http = create_app(engine_client, settings).test_client()
    assert http.get("/execution-parameters").get_json() == {
        "MaxConcurrentTransforms": 2,
        "BatchStrategy": "SINGLE_RECORD",
        "MaxPayloadInMB": 50,
    }


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/models"),
        ("POST", "/models"),
        ("DELETE", "/models/a"),
        ("POST", "/models/a/invoke"),
        ("POST", "/adapters"),
        ("GET", "/adapters/a"),
        ("GET", "/invocations-bidirectional-stream"),
        ("GET", "/metrics"),
    ],
)
def test_what_is_left_for_later_says_so(http: FlaskClient, method: str, path: str) -> None:
    response = http.open(path, method=method)
    assert response.status_code == 501
    error = response.get_json()["error"]
    assert error["code"] == "not_implemented"
    assert "not supported" in error["message"]


def test_headers_of_any_case_and_none() -> None:
    found = read_headers({})
    assert (found.route, found.session_id, found.takes_json, found.takes_lines) == (None, "", True, False)
    assert not found.prefers_stream
