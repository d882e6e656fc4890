"""The text in answers, wherever a stream is cut."""

import json
from typing import Any

import pytest

from sagemaker.answers import AnswerError, stream_text, text_of


def chunk(content: str | None, **rest: Any) -> str:
    return "data: " + json.dumps({"choices": [{"delta": {"content": content}, **rest}]}, ensure_ascii=False)


CHAT = "\n\n".join(
    [
        ": keep-alive",
        'data: {"choices": [{"delta": {"role": "assistant"}}]}',
        chunk("Grüße, "),
        "event: x\n" + chunk("世界"),
        chunk("🙂!"),
        chunk(None, finish_reason="stop"),
        'data: {"choices": [], "usage": {"total_tokens": 3}}',
        "data: [DONE]\n\n",
    ]
).encode()
TEXT = "Grüße, 世界🙂!"


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 64, 10_000])
@pytest.mark.parametrize("body", [CHAT, CHAT.replace(b"\n", b"\r\n"), CHAT.rstrip()])
def test_a_stream_cut_anywhere(body: bytes, size: int) -> None:
    parts = [body[start : start + size] for start in range(0, len(body), size)]
    assert "".join(stream_text(parts)) == TEXT


def test_pieces_come_before_the_stream_ends() -> None:
    def parts() -> Any:
        yield chunk("a").encode() + b"\n\nda"
        raise AssertionError("asked for more before the first piece was given")

    assert next(stream_text(parts())) == "a"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ('data: {"choices": [{"text": "a"}]}\n\ndata: {"choices": [{"text": "b"}]}\n\n', "ab"),
        ('data: {"token": {"text": "a"}}\n\ndata: {"token": {"text": "</s>", "special": true}}\n\n', "a"),
        ('{"token": {"text": "a"}}\n{"token": {"text": "b"}}\n', "ab"),
        ('data: {"token": {"text": "b"}, "generated_text": "ab"}\n\n', "b"),
        ("plain words\nmore", "plain words\nmore\n"),
        ("data: not json\n\n", "not json"),
    ],
)
def test_other_forms_of_streams(body: str, text: str) -> None:
    assert "".join(stream_text([body.encode()])) == text


@pytest.mark.parametrize("error", ['{"message": "out of memory"}', '"out of memory"'])
def test_an_error_within_a_stream(error: str) -> None:
    pieces = stream_text([f'{chunk("a")}\n\ndata: {{"error": {error}}}\n\n'.encode()])
    assert next(pieces) == "a"
    with pytest.raises(AnswerError, match=r"^out of memory$"):
        next(pieces)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ('{"choices": [{"message": {"role": "assistant", "content": "hé"}}]}', "hé"),
        ('{"choices": [{"text": "a"}]}', "a"),
        ('{"generated_text": "a"}', "a"),
        ('[{"generated_text": "a"}]', "a"),
        ('{"choices": [{"message": {"content": null}}]}', ""),
        ('{"other": 1}', '{"other": 1}'),
        ("plain", "plain"),
        ("", ""),
        ("[]", "[]"),
    ],
)
def test_whole_answers(body: str, text: str) -> None:
    assert text_of(body.encode()) == text
