"""Sessions over HTTP: both of AWS's header conventions, from whichever worker."""

import json
import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from container.app import create_app
from container.config import ServerConfig
from container.engine_client import EngineClient
from tests.http.scripted_engine import ScriptedEngine
from tests.http.web_process import running_web

TGI = {"inputs": "a", "parameters": {"max_new_tokens": 2}}
ID = "X-Amzn-SageMaker-Session-Id"
NEW_ID = "X-Amzn-SageMaker-New-Session-Id"
CLOSED_ID = "X-Amzn-SageMaker-Closed-Session-Id"
# The platform's own pattern of the header (botocore's NewSessionResponseHeader).
OPENED = re.compile(r"([a-zA-Z0-9](?:-*[a-zA-Z0-9])*);\sExpires=[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")


def post(http: FlaskClient, body: Any, session_id: str | None = None) -> Any:
    return http.post("/invocations", json=body, headers={} if session_id is None else {ID: session_id})


def error(response: Any) -> tuple[int, str]:
    return response.status_code, response.get_json()["error"]["message"]


@pytest.mark.parametrize("header", [None, "NEW_SESSION"])
def test_open_use_and_close(http: FlaskClient, engine: ScriptedEngine, header: str | None) -> None:
    opened = post(http, {"requestType": "NEW_SESSION"}, header)
    assert opened.status_code == 200
    assert opened.headers[NEW_ID] == opened.headers[ID]
    match = OPENED.fullmatch(opened.headers[NEW_ID])
    assert match is not None
    assert match[0].endswith("Expires=2027-01-15T08:20:00Z")  # 1200 s after the scripted 1.8e9
    assert opened.text == f"Session {match[1]} created"
    answer = post(http, TGI, match[1])
    assert answer.get_json() == [{"generated_text": "He"}]
    assert engine.generated[-1].session_id == match[1]
    assert NEW_ID not in answer.headers
    closed = post(http, {"requestType": "CLOSE"}, match[1])
    assert (closed.status_code, closed.text) == (200, f"Session {match[1]} closed")
    assert closed.headers[CLOSED_ID] == match[1]
    assert engine.sessions == []
    expected = (400, f"Bad request: session not found: {match[1]}")
    assert error(post(http, TGI, match[1])) == expected
    assert error(post(http, {"requestType": "CLOSE"}, match[1])) == expected


def test_a_first_turn_can_open_its_session(http: FlaskClient, engine: ScriptedEngine) -> None:
    answer = post(http, TGI, "NEW_SESSION")
    assert answer.get_json() == [{"generated_text": "He"}]
    match = OPENED.fullmatch(answer.headers[NEW_ID])
    assert match is not None
    assert engine.generated[-1].session_id == match[1]
    assert engine.sessions == [match[1]]
    # One that fails leaves none behind: nobody would know its id.
    assert post(http, {"inputs": 5}, "NEW_SESSION").status_code == 400
    assert engine.sessions == [match[1]]


def test_the_header_alone_opens_one(http: FlaskClient, engine: ScriptedEngine) -> None:
    opened = http.post("/invocations", data=b"", headers={ID: "NEW_SESSION"}, content_type="application/json")
    match = OPENED.fullmatch(opened.headers[NEW_ID])
    assert match is not None
    assert (opened.status_code, opened.text, engine.sessions) == (200, f"Session {match[1]} created", [match[1]])


def test_a_turn_can_be_streamed(http: FlaskClient, engine: ScriptedEngine) -> None:
    answer = post(http, {**TGI, "stream": True}, "NEW_SESSION")
    assert answer.text.startswith("data: ")
    assert OPENED.fullmatch(answer.headers[ID])


@pytest.mark.parametrize(
    ("body", "session_id", "status", "message"),
    [
        ({"requestType": "CLOSE"}, None, 424, "Failed to close session: invalid session_id: None"),
        ({"requestType": "CLOSE"}, "x", 400, "Bad request: session not found: x"),
        ({"requestType": "OTHER"}, None, 400, "'requestType' must be NEW_SESSION or CLOSE."),
        ({"requestType": 5}, None, 400, "'requestType' must be str, not int."),
        ({"requestType": "NEW_SESSION", "inputs": "a"}, None, 400, "Unknown field 'inputs'."),
        (TGI, "nobody", 400, "Bad request: session not found: nobody"),
        (TGI, "n" * 500, 400, "Bad request: session not found: " + "n" * 256),
    ],
)
def test_refusals(
    http: FlaskClient, engine: ScriptedEngine, body: Any, session_id: str | None, status: int, message: str
) -> None:
    got, text = error(post(http, body, session_id))
    assert (got, text) == (status, message)
    assert engine.sessions == []


def test_without_sessions_nothing_opens_one(engine_client: EngineClient, engine: ScriptedEngine) -> None:
    http = create_app(engine_client, ServerConfig(enable_sessions=False)).test_client()
    for body, session_id in (({"requestType": "NEW_SESSION"}, None), (TGI, "NEW_SESSION"), (TGI, "x")):
        assert error(post(http, body, session_id)) == (400, "Invalid payload. stateful sessions not enabled")
    assert engine.sessions == []


def test_the_next_turn_may_reach_another_worker(tmp_path: Path, engine: ScriptedEngine) -> None:
    with running_web(tmp_path, engine.path, num_workers=2) as web:

        def send(body: Any, session_id: str) -> tuple[int, Any, bytes]:
            headers = {"Content-Type": "application/json", ID: session_id}
            request = urllib.request.Request(f"{web.url}/invocations", json.dumps(body).encode(), headers)
            try:
                with urllib.request.urlopen(request, timeout=20) as response:
                    return response.status, response.headers, response.read()
            except urllib.error.HTTPError as failed:
                return failed.code, failed.headers, failed.read()

        before = len(engine.generated)
        _, headers, _ = send({"requestType": "NEW_SESSION"}, "NEW_SESSION")
        match = OPENED.fullmatch(headers[NEW_ID])
        assert match is not None
        # Each on a connection of its own, which either worker may take.
        assert [send(TGI, match[1])[0] for _ in range(20)] == [200] * 20
        assert len(engine.generated) == before + 20
        assert send({"requestType": "CLOSE"}, match[1])[0] == 200
        assert [send(TGI, match[1])[0] for _ in range(20)] == [400] * 20
