"""The four forms of a completion's `prompt`, and the two of TGI's `inputs`, decoded piece by piece.

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
        return [_text(data, limits, _PARAM)]
    first = _FIRST_OF_LIST.match(data)
    if first is None:
        raise _no_prompt()
    if first[1] == b"]":
        raise InvalidRequest("'prompt' must have at least one prompt.", _PARAM)
    if first[1] == b'"':
        _check_count(num_strings(data), _PARAM)
        return [_text(part, limits, _PARAM) for part in _parts(data)]
    if first[1] == b"[":
        if b'"' in data:
            raise _no_prompt()
        _check_count(data.count(b"[") - 1, _PARAM)
        return [_token_ids(part, limits) for part in _parts(data)]
    return [_token_ids(data, limits)]


def read_texts(raw: msgspec.Raw, limits: PromptLimits, param: str) -> list[str]:
    """A text or a list of texts, one by one. Raises InvalidRequest or ContextLengthExceeded for `param`."""
    data = bytes(raw)
    if data.lstrip()[:1] != b"[":
        return [_text(data, limits, param)]
    # An object's keys are counted too: it is refused all the same, for what it is.
    _check_count(num_strings(data), param)
    parts = _parts(data)
    if not parts:
        raise InvalidRequest(f"'{param}' must have at least one text.", param)
    _check_count(len(parts), param)
    return [_text(part, limits, param) for part in parts]


def _parts(data: bytes) -> list[bytes]:
    return [bytes(part) for part in msgspec.json.decode(data, type=list[msgspec.Raw])]


def _text(data: bytes, limits: PromptLimits, param: str) -> str:
    limits.check_bytes(len(data), param)
    if param != _PARAM and data.lstrip()[:1] != b'"':
        raise InvalidRequest(f"'{param}' must be a text or a list of texts.", param)
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


def _check_count(count: int, param: str) -> None:
    if count > MAX_PROMPTS:
        raise InvalidRequest(f"'{param}' has {count} prompts; at most {MAX_PROMPTS} are allowed.", param)


def _no_prompt() -> InvalidRequest:
    return InvalidRequest(
        "'prompt' must be a string, a list of strings, a list of token ids, or a list of those.", _PARAM
    )
