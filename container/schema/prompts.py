"""The four forms of a completion's `prompt`, decoded piece by piece.

Knows JSON's first characters and the limits. Must not know what else a body holds.
"""

import re
from typing import TypeVar

import msgspec

from container.schema.fields import invalid
from container.schema.limits import PromptLimits, num_strings
from engine.api import InvalidRequest

MAX_PROMPTS = 1024
Prompt = str | list[int]
ValueT = TypeVar("ValueT")

_FIRST_OF_LIST = re.compile(rb"\s*\[\s*(.)", re.DOTALL)
_PARAM = "prompt"


def read_prompts(raw: msgspec.Raw, limits: PromptLimits) -> list[Prompt]:
    """The prompts, one by one, as text or token ids.

    What can never fit is counted in the raw bytes and refused before it is decoded. Raises InvalidRequest or
    ContextLengthExceeded for "prompt".
    """
    data = bytes(raw)
    if data.lstrip()[:1] == b'"':
        return [_text(data, limits)]
    first = _FIRST_OF_LIST.match(data)
    if first is None:
        raise _no_prompt()
    if first[1] == b"]":
        raise InvalidRequest("'prompt' must have at least one prompt.", _PARAM)
    if first[1] == b'"':
        _check_count(num_strings(data))
        return [_text(part, limits) for part in _parts(data)]
    if first[1] == b"[":
        if b'"' in data:
            raise _no_prompt()
        _check_count(data.count(b"[") - 1)
        return [_token_ids(part, limits) for part in _parts(data)]
    return [_token_ids(data, limits)]


def _parts(data: bytes) -> list[bytes]:
    return [bytes(part) for part in msgspec.json.decode(data, type=list[msgspec.Raw])]


def _text(data: bytes, limits: PromptLimits) -> str:
    limits.check_bytes(len(data), _PARAM)
    return _decode(data, str)


def _token_ids(data: bytes, limits: PromptLimits) -> list[int]:
    if b'"' not in data:
        limits.check_ids(data.count(b",") + 1, _PARAM)
    return _decode(data, list[int])


def _decode(data: bytes, kind: type[ValueT]) -> ValueT:
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        is_mixture = any(words in str(error) for words in ("Expected `array`", "got `str`", "got `array`"))
        if is_mixture or kind is str:
            raise _no_prompt() from None
        raise invalid(error, _PARAM) from None


def _check_count(count: int) -> None:
    if count > MAX_PROMPTS:
        raise InvalidRequest(f"'prompt' has {count} prompts; at most {MAX_PROMPTS} are allowed.", _PARAM)


def _no_prompt() -> InvalidRequest:
    return InvalidRequest(
        "'prompt' must be a string, a list of strings, a list of token ids, or a list of those.", _PARAM
    )
