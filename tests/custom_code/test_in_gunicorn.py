"""Custom code in a real worker: its blocking calls stop nobody else, and a broken script ends the start."""

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.http.conftest import REPLY
from tests.http.scripted_engine import ScriptedEngine, wait_until
from tests.http.web_process import WebProcess

SCRIPT = """
import asyncio, subprocess, sys, threading, time
from container.custom_code import engine

lock = threading.Lock()

def model_fn(model_dir):
    return engine.generate("warm up", max_tokens=2).text

def transform_fn(model, body, content_type, accept):
    if body == "spin":
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            pass
    elif body == "sleep":
        time.sleep(1.0)
    elif body == "async":
        async def work():
            await asyncio.sleep(0.01)
            return "worked"
        return asyncio.run(work())
    elif body == "stream":
        return (piece for piece in engine.stream("Hi", max_tokens=200))
    elif body == "fail":
        raise RuntimeError("a secret")
    elif body == "child":
        done = subprocess.run(["sh", "-c", "cat; sleep 1; exit 3"], input="said", capture_output=True, text=True)
        return f"{done.stdout} {done.returncode}"
    elif body == "long":
        try:
            return engine.generate("Hi", max_tokens=200).text
        except Exception as error:
            print("it ended with", type(error).__name__, flush=True, file=sys.stderr)
            raise
    elif body == "slow stream":
        def pieces():
            yield "begun"
            yield engine.generate("Hi", max_tokens=200).text
        return pieces()
    with lock:
        return model
"""


@pytest.fixture
def web(tmp_path: Path, engine: ScriptedEngine) -> Iterator[WebProcess]:
    running = start(tmp_path, engine, SCRIPT)
    try:
        running.wait_ready()
        yield running
    finally:
        running.stop()


def start(directory: Path, engine: ScriptedEngine, script: str) -> WebProcess:
    (directory / "artifact/code").mkdir(parents=True)
    (directory / "artifact/code/inference.py").write_text(script)
    (directory / "file").write_text(str(directory / "artifact"))
    return WebProcess(directory, engine.path, {"artifact_file": str(directory / "file"), "environment": {}})


def post(web: WebProcess, body: str) -> tuple[int, str]:
    headers = {"Content-Type": "text/plain", "Accept": "text/plain"}
    request = urllib.request.Request(f"{web.url}/invocations", body.encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.parametrize("what", ["sleep", "spin"])
def test_blocking_calls_stop_neither_pings_nor_other_requests(web: WebProcess, what: str) -> None:
    answers: list[tuple[int, str]] = []
    threads = [threading.Thread(target=lambda: answers.append(post(web, what))) for _ in range(4)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    asked = time.monotonic()
    assert web.ping()[0] == 200
    assert time.monotonic() - asked < 1.0
    assert post(web, "x") == (200, REPLY[:2])
    for thread in threads:
        thread.join()
    assert answers == [(200, REPLY[:2])] * 4
    # Sleeping at the same time; what computes shares one interpreter.
    assert time.monotonic() - started < (2.5 if what == "sleep" else 8)


def test_coroutines_work_and_errors_stay_in_the_log(web: WebProcess) -> None:
    assert post(web, "async") == (200, "worked")
    status, body = post(web, "fail")
    assert (status, json.loads(body)["error"]["code"]) == (500, "internal_error")
    assert "secret" not in body
    assert "RuntimeError: a secret" in web.log.read_text()


def test_a_child_process_stops_nobody_else(web: WebProcess) -> None:
    answers: list[tuple[int, str]] = []
    threads = [threading.Thread(target=lambda: answers.append(post(web, "child"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    asked = time.monotonic()
    assert web.ping()[0] == 200
    assert time.monotonic() - asked < 0.5
    for thread in threads:
        thread.join()
    assert answers == [(200, "said 3")] * 3


@pytest.mark.parametrize(("body", "first"), [("stream", b"H\r\n"), ("slow stream", b"begun"), ("long", b"")])
def test_a_client_that_leaves_ends_its_generation(
    web: WebProcess, engine: ScriptedEngine, body: str, first: bytes
) -> None:
    engine.reply = engine.reply * 10
    engine.step_s = 0.05
    try:
        num_generated = len(engine.generated)
        with web.connect() as sock:
            head = f"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: text/plain\r\nContent-Length: {len(body)}"
            sock.sendall((head + "\r\n\r\n" + body).encode())
            received = b""
            while first not in received:
                received += sock.recv(4096)
            wait_until(lambda: len(engine.generated) > num_generated, 5, "a generation")
        wait_until(lambda: engine.aborted, 5, "an abort")
        if body == "long":
            wait_until(lambda: "it ended with RequestAborted" in web.log.read_text(), 5, "the script's error")
    finally:
        engine.reply = engine.reply[: len(engine.reply) // 10]


def test_a_broken_script_ends_the_web_tier_with_its_traceback(tmp_path: Path, engine: ScriptedEngine) -> None:
    web = start(tmp_path, engine, "def model_fn(model_dir):\n    return undefined_name")
    answers: set[Any] = set()

    def has_ended() -> bool:
        answers.add(web.ping()[0])
        return web.process.poll() is not None

    wait_until(has_ended, 20, "the end")
    assert web.process.returncode == 4
    assert 200 not in answers
    assert "NameError: name 'undefined_name' is not defined" in web.log.read_text()
