"""`model.py`: handlers, middlewares and formatters of the newer contract, by name, decorator and variable."""

import json

import pytest

from tests.custom_code.conftest import Broken, Start
from tests.http.conftest import REPLY

BODY = {"inputs": "Hi", "parameters": {"max_new_tokens": 2}}


def test_handlers_by_name_are_handed_flasks_request(start: Start) -> None:
    script = """
from flask import Response, request as proxy
def custom_sagemaker_ping_handler():
    return Response("fine", 299)
async def custom_sagemaker_invocation_handler(request):
    return {"x": request.json["x"], "same": proxy.headers["X-A"] == request.headers["X-A"]}, 201
"""
    client = start({"model.py": script})
    assert (client.get("/ping").status_code, client.get("/ping").text) == (299, "fine")
    answer = client.post("/invocations", json={"x": 3}, headers={"X-A": "b"})
    assert (answer.status_code, answer.json) == (201, {"x": 3, "same": True})


def test_a_ping_that_raises_is_not_healthy_and_shows_no_traceback(start: Start) -> None:
    client = start({"model.py": "def custom_sagemaker_ping_handler():\n    1 / 0"})
    assert client.get("/ping").status_code == 500
    assert "ZeroDivision" not in client.get("/ping").text


def test_variables_win_over_decorators_and_those_over_names(start: Start) -> None:
    script = """
from container.custom_code import custom_invocation_handler
@custom_invocation_handler
def decorated(request):
    return "decorated"
def custom_sagemaker_invocation_handler(request):
    return "named"
class Handlers:
    word = "method"
    def handle(self, request):
        return self.word
"""
    files = {"model.py": script, "other.py": "def f(): return 'file'", "package/mod.py": "def f(): return 'module'"}
    variable = "CUSTOM_FASTAPI_INVOCATION_HANDLER"
    assert start(files).post("/invocations", data="{}").text == "decorated"
    for spec, expected in (
        ("model:custom_sagemaker_invocation_handler", "named"),
        (":Handlers.handle", "method"),
        ("other.py:f", "file"),
        ("package.mod:f", "module"),
    ):
        assert start(files, **{variable: spec}).post("/invocations", data="{}").text == expected


@pytest.mark.parametrize("spec", ["model:missing", "missing.py:f", "no_such_package:f", "model", ":x"])
def test_a_variable_that_names_nothing_ends_the_start(
    start: Start, caplog: pytest.LogCaptureFixture, spec: str
) -> None:
    with pytest.raises(Broken):
        start({"model.py": "x = 1"}, CUSTOM_PRE_PROCESS=spec)
    assert f"CUSTOM_PRE_PROCESS={spec}: " in caplog.text


def test_formatters_stand_around_our_own_answer(start: Start) -> None:
    script = """
from container.custom_code import input_formatter, output_formatter
@input_formatter
def question(request):
    return {"inputs": request.json["question"], "parameters": {"max_new_tokens": 2}}
@output_formatter
def answer(response):
    return {"answer": response.json[0]["generated_text"]}
"""
    client = start({"model.py": script})
    assert client.post("/invocations", json={"question": "Hi"}).json == {"answer": REPLY[:2]}
    refused = client.post("/invocations", json={"nothing": 1})
    assert refused.status_code == 500


def test_middlewares_stand_in_order_and_may_refuse(start: Start) -> None:
    script = """
from container.custom_code import custom_middleware
@custom_middleware("throttle")
def throttle(request, call_next):
    if request.headers.get("X-Full"):
        return {"error": "full"}, 429
    response = call_next(request)
    response.headers["X-Order"] += " throttle"
    return response
@custom_middleware("pre_post_process")
async def around(request, call_next):
    response = await call_next(request)
    response.headers["X-Order"] = "process"
    return response
"""
    client = start({"model.py": script})
    answer = client.post("/invocations", json=BODY)
    assert (answer.headers["X-Order"], answer.json) == ("process throttle", [{"generated_text": REPLY[:2]}])
    assert client.post("/invocations", json=BODY, headers={"X-Full": "1"}).status_code == 429


def test_coroutines_call_coroutines(start: Start) -> None:
    script = """
from flask import request as proxy
async def custom_throttle(request, call_next):
    response = await call_next(request)
    response.headers["X-Throttle"] = proxy.headers["X-Who"]
    return response
async def custom_pre_post_process(request, call_next):
    return await call_next(request)
async def custom_pre_process(request):
    return {"x": request.json["x"] + 1}
async def custom_sagemaker_invocation_handler(request):
    if request.json["x"] == 1:
        raise ValueError("secret")
    return {"x": request.json["x"], "who": proxy.headers["X-Who"]}
"""
    client = start({"model.py": script})
    answer = client.post("/invocations", json={"x": 3}, headers={"X-Who": "me"})
    assert (answer.status_code, answer.json, answer.headers["X-Throttle"]) == (200, {"x": 4, "who": "me"}, "me")
    refused = client.post("/invocations", json={"x": 0}, headers={"X-Who": "me"})
    assert refused.status_code == 500
    assert "secret" not in refused.text


def test_a_ping_handler_that_hangs_is_not_waited_for(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("container.custom_code.worker._PING_LIMIT_S", 0.2)
    client = start({"model.py": "import time\ndef custom_sagemaker_ping_handler():\n    time.sleep(3)"})
    for _ in range(3):  # more than its threads
        answer = client.get("/ping")
        assert (answer.status_code, answer.json["status"]) == (503, "stalled")  # type: ignore[index]


def test_a_script_without_hooks_is_named(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    body = {"inputs": "Hi", "parameters": {"max_new_tokens": 2}}
    client = start({"model.py": "def custom_sagemaker_invocation_handlers(request): pass"})
    assert client.post("/invocations", json=body).json == [{"generated_text": REPLY[:2]}]
    assert "model.py has none of the hooks (custom_sagemaker_ping_handler, " in caplog.text
    with pytest.raises(Broken):
        start({"model.py": "def handle(inputs): pass"})
    assert "handle() is DJL's contract" in caplog.text


def test_our_own_stream_passes_through(start: Start) -> None:
    script = (
        "def custom_throttle(request, call_next):\n    return call_next(request)\ndef custom_post_process(r): 1 / 0"
    )
    answer = start({"model.py": script}).post("/invocations", json={**BODY, "stream": True})
    events = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
    assert "".join(event["token"]["text"] for event in events) == REPLY[:2]


def test_our_own_errors_keep_their_status(start: Start) -> None:
    client = start({"model.py": "def custom_throttle(request, call_next):\n    return call_next(request)"})
    assert client.post("/invocations", data=b"{}").status_code == 400
    assert client.post("/invocations", data=b"x" * (2**20 + 1)).status_code == 413


def test_both_contracts_at_once(start: Start) -> None:
    files = {
        "code/inference.py": "def transform_fn(model, body, content_type, accept): return {'got': body}",
        "model.py": "def custom_pre_process(request): return request.get_data().upper()",
    }
    assert start(files).post("/invocations", data="abc", content_type="text/plain").json == {"got": "ABC"}
