"""From a body's bytes to its top-level fields, unread.

Decoding holds the interpreter's lock, so a body that may have very many fields is not read past the first that no route
knows. Knows every route's names. Must not know what they mean.
"""

import codecs
import re

import msgspec

from container.schema import chat, completions, generate
from container.schema.fields import RawBody, json_problem, shown
from engine.api import InvalidRequest

# What a body without any field of ours may want.
NOT_SERVED = {
    "input": "an embedding (or OpenAI's Responses)",
    "documents": "a ranking",
    "query": "a ranking",
    "text_1": "a score",
    "instances": "TensorFlow Serving's predict",
}
# Opens or closes a session.
REQUEST_TYPE = "requestType"

# No more fields than colons: so many take some hundredths of a second.
_MAX_COLONS = 50_000
_UTF8_STEP_BYTES = 2**20
_UNKNOWN = re.compile(r"unknown field `(.*)`", re.DOTALL)


def _known_names() -> list[str]:
    structs = (chat.ChatRequest, completions.CompletionRequest, generate.GenerateBody)
    names = {field.encode_name for struct in structs for field in msgspec.structs.fields(struct)}
    for rule in (chat.RULE, completions.RULE):
        names |= {*rule.neutral, *rule.without_effect}
    return sorted({*names, *NOT_SERVED, REQUEST_TYPE})


_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
_Large = msgspec.defstruct(
    "_Large",
    [(name, msgspec.Raw | msgspec.UnsetType, msgspec.UNSET) for name in _known_names()],
    forbid_unknown_fields=True,
)
_large_decoder = msgspec.json.Decoder(_Large)


def split(body: bytes) -> RawBody:
    """The body's top-level fields, unread. Raises InvalidRequest when it is not a JSON object in UTF-8.

    Of one that may have very many fields also for a field that no route knows: of the others there are only so many.
    """
    # Editors and shells on Windows write a mark in front, which RFC 8259 lets a reader ignore.
    body = body.removeprefix(codecs.BOM_UTF8)
    try:
        _check_utf8(body)
        if body.count(b":") <= _MAX_COLONS:
            return _decoder.decode(body)
        found = msgspec.structs.asdict(_large_decoder.decode(body))
        return {name: value for name, value in found.items() if value is not msgspec.UNSET}
    except msgspec.ValidationError as error:
        if unknown := _UNKNOWN.search(str(error)):
            raise InvalidRequest(f"Unknown field '{shown(unknown[1])}'.", shown(unknown[1])) from None
        raise InvalidRequest("The request body must be a JSON object.") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"The request body is not valid JSON: {json_problem(error)}.") from None


def _check_utf8(body: bytes) -> None:
    # What nobody reads is not looked into by msgspec; in steps, so that other threads get the interpreter's lock.
    decoder = codecs.getincrementaldecoder("utf-8")()
    view = memoryview(body)
    for start in range(0, len(view), _UTF8_STEP_BYTES):
        decoder.decode(view[start : start + _UTF8_STEP_BYTES])
    decoder.decode(b"", final=True)
