"""The rule for request fields, once for all schemas.

A field takes effect, or the request is refused with 400 and the field's name. Two exceptions: a neutral value of a
known field is accepted (null is neutral everywhere), and fields that can mean nothing here are accepted without effect.

Knows msgspec and its messages. Must not know which fields a route has.
"""

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import msgspec

from engine.api import InvalidRequest, RequestError

StructT = TypeVar("StructT", bound=msgspec.Struct)
RawBody = Mapping[str, msgspec.Raw]

# For fields of which only null is neutral.
NOTHING: tuple[Any, ...] = ()

_PATH = re.compile(r" - at `(key in )?\$(?P<path>.*)`$")
_FIELD = re.compile(r"(unknown|required) field `(?P<name>.*?)`")
_EXPECTED = re.compile(r"^Expected `(?P<expected>.*)`, got `(?P<got>.*)`$")
_NULL = b"null"
_MAX_SHOWN_CHARS = 100
# Decoding holds the interpreter's lock: all fields but those that make the prompt are short, or wrong. 16 stop strings
# of 1024 characters take 192 KiB at most.
_MAX_FIELD_BYTES = 2**19
_MAX_NEUTRAL_BYTES = 1024


@dataclasses.dataclass(frozen=True)
class FieldRule:
    """What a schema does with the fields that its struct does not have.

    neutral: per field, the values (besides null) that ask for nothing that we lack.
    without_effect: fields that can mean nothing here, whatever their value.
    max_bytes: for the fields that may be longer than others; None where something else bounds them.
    """

    neutral: Mapping[str, tuple[Any, ...]]
    without_effect: frozenset[str]
    max_bytes: Mapping[str, int | None] = dataclasses.field(default_factory=dict)


def read(raw: RawBody, struct: type[StructT], rule: FieldRule) -> StructT:
    """The struct with the fields that take effect. Raises InvalidRequest, naming the field, as the rule says."""
    names = {field.encode_name for field in msgspec.structs.fields(struct)}
    given: dict[str, Any] = {}
    for name, value in raw.items():
        if len(memoryview(value)) == len(_NULL) and bytes(value) == _NULL:
            # Null asks for nothing; for a required field it is as good as missing.
            continue
        if name in names:
            _check_length(name, value, rule.max_bytes.get(name, _MAX_FIELD_BYTES))
            given[name] = value
        elif name in rule.neutral:
            _check_neutral(name, value, rule.neutral[name])
        elif name not in rule.without_effect:
            raise InvalidRequest(f"Unknown field '{shown(name)}'.", shown(name))
    try:
        return msgspec.json.decode(msgspec.json.encode(given), type=struct)
    except msgspec.ValidationError as error:
        raise invalid(error) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"The request body is not valid JSON: {json_problem(error)}.") from None


def _check_length(name: str, raw: msgspec.Raw, max_bytes: int | None) -> None:
    length = len(memoryview(raw))
    if max_bytes is not None and length > max_bytes:
        raise InvalidRequest(f"'{name}' is {length} bytes long; at most {max_bytes} are taken.", name)


def _check_neutral(name: str, raw: msgspec.Raw, neutral: tuple[Any, ...]) -> None:
    # A longer value than any neutral one need not be decoded to know that it is none.
    if len(memoryview(raw)) <= _MAX_NEUTRAL_BYTES:
        try:
            value = msgspec.json.decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidRequest(f"The request body is not valid JSON: {json_problem(error)}.", name) from None
        for one in neutral:
            # bool is an int in Python, but `"best_of": true` is no number.
            if value == one and isinstance(value, bool) == isinstance(one, bool):
                return
    allowed = " or ".join(["null", *(msgspec.json.encode(one).decode() for one in neutral)])
    raise InvalidRequest(f"'{name}' is not supported here; leave it out (or {allowed}).", name)


@contextlib.contextmanager
def named(names: Mapping[str, str]) -> Iterator[None]:
    """Refusals from within name the field as the caller wrote it: `names` maps the engine's names to the schema's."""
    try:
        yield
    except RequestError as error:
        name = names.get(error.param or "")
        if name is None:
            raise
        raise type(error)(error.message.replace(f"'{error.param}'", f"'{name}'"), name) from None


def invalid(error: msgspec.ValidationError, root: str = "") -> InvalidRequest:
    """msgspec's complaint in words for the caller, with the field's path from `root`: `messages[0].content`."""
    text = str(error)
    path = ""
    if match := _PATH.search(text):
        # A map's values have no place of their own: what is wrong is the field.
        path = match["path"].removeprefix(".").removesuffix("[...]")
        text = text[: match.start()]
    if field := _FIELD.search(text):
        path = f"{path}.{shown(field['name'])}".removeprefix(".")
        text = "is missing" if field[1] == "required" else "is not a known field"
    elif expected := _EXPECTED.match(text):
        kinds = expected["expected"].replace(" | null", "").replace("|", "or")
        text = f"must be {kinds}, not {expected['got']}"
    else:
        text = f"is not valid: {shown(text[:1].lower() + text[1:])}"
    path = root + path or "body"
    return InvalidRequest(f"'{path}' {text}.", path)


def json_problem(error: Exception) -> str:
    """What is wrong with JSON that could not be decoded."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    text = str(error).removeprefix("JSON is malformed: ").removeprefix("Input data was ")
    return text or "it is malformed"


def shown(name: str) -> str:
    """A caller's own text in a message."""
    # A name is the caller's own text and comes back to them; it must not make the answer as large as the body.
    return name if len(name) <= _MAX_SHOWN_CHARS else name[:_MAX_SHOWN_CHARS] + "…"
