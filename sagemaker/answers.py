"""The text in a container's answer, whole or streamed.

Knows the answers of the OpenAI API and of TGI, and server-sent events. Must not know SageMaker.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any

_DONE = "[DONE]"


class AnswerError(Exception):
    """The stream carried an error; the message is the container's."""


def text_of(body: bytes) -> str:
    """The generated text of a whole answer; the body itself where it has another form."""
    text = body.decode("utf-8", "replace")
    try:
        found = _text(json.loads(text))
    except ValueError:
        found = None
    return text if found is None else found


def stream_text(parts: Iterable[bytes]) -> Iterator[str]:
    """The pieces of generated text in the parts of a streamed answer, as they come.

    Parts may be cut anywhere, within an event and within a character. Events are server-sent ones ("data: {…}") or
    lines of JSON; text of any other form is passed on line by line. Raises AnswerError at an error event.
    """
    for line in _lines(parts):
        # Only whole lines are decoded: a line's end is never a part of a character.
        text = line.decode("utf-8", "replace")
        if text.startswith("data:"):
            data = text[5:].strip()
            if data == _DONE:
                continue
        elif text.startswith("{"):
            data = text
        elif not text or text.startswith((":", "event:", "id:", "retry:")):
            continue
        else:
            yield text + "\n"
            continue
        piece = _piece(data)
        if piece:
            yield piece


def _lines(parts: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for part in parts:
        *lines, rest = (rest + part).split(b"\n")
        yield from (line.removesuffix(b"\r") for line in lines)
    if rest:
        yield rest


def _piece(data: str) -> str:
    try:
        event = json.loads(data)
    except ValueError:
        return data
    if isinstance(event, dict) and "error" in event:
        error = event["error"]
        raise AnswerError(str(error.get("message", error) if isinstance(error, dict) else error))
    return _text(event) or ""


def _text(answer: Any) -> str | None:
    """The text of one JSON value; None where it has none in a known place."""
    if isinstance(answer, list) and answer:
        answer = answer[0]
    if not isinstance(answer, dict):
        return None
    if isinstance(choices := answer.get("choices"), list):
        choice = choices[0] if choices and isinstance(choices[0], dict) else {}
        message = choice.get("message") or choice.get("delta") or {}
        return str(message.get("content") or choice.get("text") or "")
    token = answer.get("token")
    if isinstance(token, dict):
        return "" if token.get("special") else str(token.get("text", ""))
    found = answer.get("generated_text")
    return None if found is None else str(found)
