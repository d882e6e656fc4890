"""Bodies of many megabytes: refused by their field's name, and /ping is answered meanwhile."""

import threading
import time
from collections.abc import Iterator

import pytest

from container.schema.limits import num_strings
from tests.http.scripted_engine import ScriptedEngine
from tests.http.test_web_process import post
from tests.http.web_process import WebProcess, running_web

CHAT, COMPLETIONS, INVOCATIONS = "/v1/chat/completions", "/v1/completions", "/invocations"
HI = b'{"messages":[{"role":"user","content":"hi"}],"max_tokens":2,'
TOOL = b'{"type":"function","function":{"name":"f","parameters":{"a":1}}}'
SIZE = 10_000_000


def many(one: bytes) -> bytes:
    return b",".join([one] * (SIZE // (len(one) + 1)))


CASES: dict[str, tuple[str, bytes, int, str | None]] = {
    "many tools": (CHAT, HI + b'"tools":[' + many(TOOL) + b"]}", 400, "tools"),
    "more tools than allowed": (CHAT, HI + b'"tools":[' + b",".join([TOOL] * 1025) + b"]}", 400, "tools"),
    "one large tool": (
        CHAT,
        HI + b'"tools":[{"type":"function","function":{"name":"f","parameters":{"a":[' + many(b"1") + b"]}}}]}",
        400,
        "tools",
    ),
    "kwargs": (CHAT, HI + b'"chat_template_kwargs":{"a":[' + many(b"1") + b"]}}", 400, "chat_template_kwargs"),
    "messages": (CHAT, b'{"messages":[' + many(b'{"role":"user","content":"hi"}') + b"]}", 400, "messages"),
    "arguments": (
        CHAT,
        b'{"messages":[{"role":"assistant","tool_calls":[{"function":{"name":"f","arguments":"{\\"a\\":['
        + many(b"1")
        + b']}"}}]}]}',
        400,
        "messages",
    ),
    "ids": (COMPLETIONS, b'{"prompt":[' + many(b"1") + b"]}", 400, "prompt"),
    "lists of ids": (COMPLETIONS, b'{"prompt":[' + many(b"[1]") + b"]}", 400, "prompt"),
    "strings": (COMPLETIONS, b'{"prompt":[' + many(b'"a"') + b"]}", 400, "prompt"),
    "long strings": (COMPLETIONS, b'{"prompt":[' + many(b'"' + b"a" * 10_000 + b'"') + b"]}", 400, "prompt"),
    "inputs": (INVOCATIONS, b'{"inputs":"' + b"a " * (SIZE // 2) + b'"}', 400, "inputs"),
    "parameters": (INVOCATIONS, b'{"inputs":"a","parameters":{"stop":[' + many(b'"a"') + b"]}}", 400, "parameters"),
    "stop": (COMPLETIONS, b'{"prompt":"a","stop":[' + many(b'"a"') + b"]}", 400, "stop"),
    "neutral": (COMPLETIONS, b'{"prompt":"a","logit_bias":[' + many(b"1") + b"]}", 400, "logit_bias"),
    "metadata": (COMPLETIONS, b'{"prompt":"a","max_tokens":2,"metadata":[' + many(b"1") + b"]}", 200, None),
    "keys": (COMPLETIONS, b"{" + b",".join(b'"%x":1' % i for i in range(SIZE // 10)) + b"}", 400, "0"),
    "blank lines": (INVOCATIONS, b"\n" * (10 * SIZE) + b"{}", 400, None),
    "unknown": (COMPLETIONS, b'{"prompt":"a","mood":[' + many(b"1") + b"]}", 400, "mood"),
}


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory, shared_engine: ScriptedEngine) -> Iterator[WebProcess]:
    with running_web(tmp_path_factory.mktemp("web"), shared_engine.path, stall_limit_s=10) as web:
        yield web


@pytest.mark.parametrize("name", CASES)
def test_large_bodies_do_not_delay_ping(web: WebProcess, engine: ScriptedEngine, name: str) -> None:
    path, body, status, param = CASES[name]
    is_over = threading.Event()
    slowest = 0.0

    def ping() -> None:
        nonlocal slowest
        while not is_over.is_set():
            started = time.monotonic()
            assert web.ping()[0] == 200
            slowest = max(slowest, time.monotonic() - started)
            time.sleep(0.01)

    thread = threading.Thread(target=ping)
    thread.start()
    try:
        got, _, answer = post(web, path, body)
    finally:
        is_over.set()
        thread.join()
    assert got == status, answer[:300]
    if param is not None:
        assert f'"param":"{param}"'.encode() in answer
        assert len(answer) < 1000
    # A few hundredths on an idle machine; before, many seconds.
    assert slowest < 1.5


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (rb"[]", 0),
        (rb'["a", "b"]', 2),
        (rb'["\"", "\\", "\\\"", "\\\\"]', 4),
        (rb'["\u0022"]', 1),
    ],
)
def test_strings_are_counted_without_decoding(raw: bytes, expected: int) -> None:
    assert num_strings(raw) == expected
