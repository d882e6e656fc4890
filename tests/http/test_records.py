"""Batches of records: order, bad ones, a full queue, memory, and clients or engines that leave."""

import http.client
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import gevent
import pytest
from flask.testing import FlaskClient

from container.app import create_app
from container.config import ServerConfig
from container.engine_client import EngineClient
from container.routes import records
from container.routes.serving import BatchPlaces
from engine.api import DeadlineExceeded
from tests.http.scripted_engine import ScriptedEngine, wait_until
from tests.http.web_process import WebProcess, post_bytes, running_web

CHAT = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}


def jsonl(lines: list[Any]) -> bytes:
    return b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)


def post(client: FlaskClient, lines: list[Any], **headers: str) -> Any:
    return client.post("/invocations", data=jsonl(lines), content_type="application/jsonlines", headers=headers)


def completion(text: str, **fields: Any) -> dict[str, Any]:
    return {"prompt": text, "max_tokens": 250, "temperature": 0, **fields}


def test_one_line_per_record_in_order(http: FlaskClient, engine: ScriptedEngine) -> None:
    engine.echoes, engine.max_num_seqs = True, 8
    gevent.sleep(0.5)  # the worker has heard of it
    # Of very different lengths, so that later ones end first.
    texts = [f"{i}." * (60 if i % 7 == 0 else 1) for i in range(200)]
    response = post(http, [completion(text) for text in texts])
    assert (response.status_code, response.content_type) == (200, "application/jsonlines")
    assert response.text.endswith("\n")
    answers = [json.loads(line) for line in response.text.splitlines()]
    assert [answer["choices"][0]["text"] for answer in answers] == texts
    assert 8 <= engine.most_running <= 10


def test_every_kind_of_record_and_a_bad_one_in_its_place(http: FlaskClient, engine: ScriptedEngine) -> None:
    lines = [
        CHAT,
        b"",
        {"inputs": ["a", "b"], "parameters": {"max_new_tokens": 2}},
        b"not json",
        {"prompt": "a", "max_tokens": -1},
        {"prompt": "a", "stream": True},
        {"requestType": "NEW_SESSION"},
        {"model": "other", **CHAT},
        b"  " + json.dumps(completion("a", max_tokens=2, stream=False)).encode() + b"\r",
    ]
    answers = [json.loads(line) for line in post(http, lines).text.splitlines()]
    assert answers[0]["object"] == "chat.completion"
    assert answers[1] == [{"generated_text": "He"}] * 2
    assert "not valid JSON" in answers[2]["error"]["message"]
    assert [answer["error"]["param"] for answer in answers[3:7]] == ["max_tokens", "stream", "requestType", "model"]
    assert answers[6]["error"]["code"] == "model_not_found"
    assert answers[7]["choices"][0]["text"] == "He"
    assert len(answers) == 8


def test_a_route_counts_for_every_record(http: FlaskClient, engine: ScriptedEngine) -> None:
    attributes = {"X-Amzn-SageMaker-Custom-Attributes": "route=/v1/completions"}
    answers = [json.loads(line) for line in post(http, [completion("a"), CHAT], **attributes).text.splitlines()]
    assert answers[0]["object"] == "text_completion"
    assert answers[1]["error"]["param"] == "messages"


def test_a_full_queue_makes_records_wait(http: FlaskClient, engine: ScriptedEngine) -> None:
    engine.echoes, engine.max_num_seqs, engine.max_running = True, 16, 3
    gevent.sleep(0.5)  # the worker has heard of it
    response = post(http, [completion(f"{i}") for i in range(40)])
    assert [json.loads(line)["choices"][0]["text"] for line in response.text.splitlines()] == [
        str(i) for i in range(40)
    ]
    assert engine.most_running <= 3
    assert len(engine.generated) > 40, "nothing was ever refused: this shows nothing"


def test_blank_lines_are_skipped() -> None:
    body = b"\n \r\n{1}\n\n" + b" \n" * 100_000 + b"{2}\r\n \n{3}" + b"\n" * 3_000_000
    assert list(records.lines(body)) == [b"{1}", b"{2}", b"{3}"]
    assert list(records.lines(b"\n" * 100)) == []


def test_a_record_of_many_prompts_takes_as_many_places(http: FlaskClient, engine: ScriptedEngine) -> None:
    engine.max_num_seqs, engine.step_s = 8, 0.01
    gevent.sleep(0.5)  # the worker has heard of it
    lines = [{"prompt": ["a"] * 6, "max_tokens": 3}] * 10 + [{"prompt": "a", "n": 20, "max_tokens": 3}]
    answers = [json.loads(line) for line in post(http, lines).text.splitlines()]
    assert [len(answer["choices"]) for answer in answers] == [6] * 10 + [20]
    # One request is never split over places that it does not have: it goes alone.
    assert engine.most_running <= 20


def test_a_prompt_that_finds_no_room_waits_for_those_beside_it(http: FlaskClient, engine: ScriptedEngine) -> None:
    engine.max_running, engine.echoes = 4, True
    answer = http.post("/v1/completions", json={"prompt": [f"{i}" for i in range(30)], "max_tokens": 9})
    assert [choice["text"] for choice in answer.get_json()["choices"]] == [str(i) for i in range(30)]
    assert engine.most_running <= 4
    assert len(engine.generated) > 30, "nothing was ever refused: this shows nothing"


def test_places_are_handed_out_in_order_and_not_waited_for_past_the_deadline() -> None:
    places = BatchPlaces()
    soon = time.monotonic() + 20
    assert places.take(5, 3, soon) == 3  # all that there are
    with pytest.raises(DeadlineExceeded):
        places.take(1, 3, time.monotonic() + 0.02)
    waiting = [gevent.spawn(places.take, num, 3, soon) for num in (2, 2, 1)]
    gevent.sleep(0)
    places.give_back(3)
    gevent.joinall(waiting, timeout=0.05)
    # The third would fit beside the first, and does not overtake the second.
    assert [one.ready() for one in waiting] == [True, False, False]
    waiting[1].kill()
    gevent.joinall(waiting, timeout=0.05)
    assert waiting[2].value == 1


def test_batches_share_their_places(http: FlaskClient, engine: ScriptedEngine) -> None:
    engine.max_num_seqs, engine.step_s = 8, 0.01
    gevent.sleep(0.5)  # the worker has heard of it
    clients = [http.application.test_client() for _ in range(4)]
    lines = [completion("a", max_tokens=5)] * 40
    batches = [gevent.spawn(post, client, lines) for client in clients]
    answers = [batch.get(timeout=60).text.splitlines() for batch in batches]
    assert [len(lines) for lines in answers] == [40] * 4
    assert engine.most_running <= 10


def test_what_waits_to_be_sent_is_bounded(
    engine_client: EngineClient, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "_MAX_HELD_BYTES", 5000)
    engine.echoes = True
    client = create_app(engine_client, ServerConfig()).test_client()
    response = client.post(
        "/invocations",
        data=jsonl([completion("x" * 100) for _ in range(200)]),
        content_type="application/jsonlines",
        buffered=False,
    )
    body = response.iter_encoded()
    next(iter(body))
    gevent.sleep(1)
    # Nobody reads: of 200 records only those were begun that fit.
    num_begun = len(engine.generated)
    assert num_begun < 40
    assert sum(1 for _ in body) >= 199 - 1
    assert len(engine.generated) == 200
    response.close()


def test_a_batch_before_the_engine_is_ready_is_503(http: FlaskClient, engine: ScriptedEngine) -> None:
    engine.state = "starting"
    wait_until(lambda: http.get("/ping").status_code == 503)
    response = post(http, [CHAT])
    assert (response.status_code, response.get_json()["error"]["code"]) == (503, "engine_not_ready")
    engine.state = "ready"
    wait_until(lambda: http.get("/ping").status_code == 200)


def test_a_step_that_fails_is_an_error_line(http: FlaskClient, engine: ScriptedEngine) -> None:
    engine.failure = ("generation_failed", "The engine failed.")
    [answer] = [json.loads(line) for line in post(http, [CHAT]).text.splitlines()]
    assert answer["error"]["code"] == "generation_failed"


def test_batch_transform_gets_lines_whatever_the_body_is_called(
    engine_client: EngineClient, engine: ScriptedEngine
) -> None:
    client = create_app(engine_client, ServerConfig(batch_transform=True)).test_client()

    def send(body: bytes) -> Any:
        return client.post("/invocations", data=body, content_type="application/json")

    for indent in (None, 1):
        single = send(json.dumps(completion("a", max_tokens=2), indent=indent).encode())
        assert single.text.count("\n") == 1
        assert json.loads(single.text)["choices"][0]["text"] == "He"
    several = send(jsonl([completion("a", max_tokens=2)] * 3))
    assert [json.loads(line)["choices"][0]["text"] for line in several.text.splitlines()] == ["He"] * 3
    assert several.text.endswith("}\n")
    # A record is answered alone as it is in company.
    good = json.dumps(completion("a", max_tokens=2)).encode()
    for bad in (b"{bad", b'{"prompt": "a", "max_tokens": -1}', b'{"prompt": "a", "stream": true}'):
        [alone] = send(bad).text.splitlines()
        for body in (bad + b"\n" + good, good + b"\n" + bad):
            answers = [json.loads(line) for line in send(body).text.splitlines()]
            assert sorted("error" in answer for answer in answers) == [False, True]
            assert json.loads(alone) in answers
    # Elsewhere a body is what it is called.
    plain = create_app(engine_client, ServerConfig()).test_client()
    body = jsonl([completion("a")] * 2)
    assert plain.post("/invocations", data=body, content_type="application/json").status_code == 400


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory, shared_engine: ScriptedEngine) -> Iterator[WebProcess]:
    with running_web(tmp_path_factory.mktemp("web"), shared_engine.path) as running:
        yield running


def begin(web: WebProcess, num_records: int) -> socket.socket:
    sock = web.connect()
    body = jsonl([CHAT | {"max_tokens": 400}] * num_records)
    sock.sendall(post_bytes("/invocations", body).replace(b"application/json", b"application/jsonlines", 1))
    return sock


def test_a_client_that_leaves_ends_the_whole_batch(web: WebProcess, engine: ScriptedEngine) -> None:
    web.wait_ready()
    engine.step_s = 0.05
    sock = begin(web, 100)
    wait_until(lambda: engine.num_running > 1)
    sock.close()
    wait_until(lambda: engine.num_running == 0)
    num_begun = len(engine.generated)
    time.sleep(0.5)
    assert len(engine.generated) == num_begun < 100


def test_a_batch_that_loses_the_engine_breaks_off(web: WebProcess, engine: ScriptedEngine) -> None:
    web.wait_ready()
    engine.step_s = 0.02
    with begin(web, 1000) as sock:
        response = http.client.HTTPResponse(sock, method="POST")
        response.begin()
        assert response.status == 200
        assert json.loads(response.readline())["object"] == "chat.completion"
        engine.die()
        try:
            # A clean end would pass a part of the answers for all of them.
            with pytest.raises((http.client.IncompleteRead, ConnectionError)):
                response.read()
        finally:
            engine.start()
    web.wait_ready()
