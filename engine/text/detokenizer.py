"""Token ids to text as they come, where the pieces add up to exactly what decoding all ids at once gives.

Knows how vocabularies spell bytes and leading spaces. Must not know stop strings or requests.

Two ways, by the tokenizer's decoder:

- byte-level vocabularies are a plain byte stream: an incremental UTF-8 decoder holds back an incomplete character;
- any other decoder sees a window of the last ids, since a token's text may depend on the one before it (a leading space
  is dropped at the start of a text only). What a new token adds to the window's text is its text.
"""

import codecs
from collections.abc import Sequence
from typing import Protocol

from engine.text.byte_alphabet import is_byte_token, token_bytes
from engine.text.tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"


class _Pieces(Protocol):
    def push(self, ids: list[int]) -> str: ...

    def finish(self) -> str: ...


class Detokenizer:
    """Incremental decoding of one sequence; the time per token is constant on average.

    skip_special_tokens: leave special tokens out of the text.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool) -> None:
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset[int]()
        self._pieces: _Pieces = _ByteStream(tokenizer) if tokenizer.is_byte_level else _Window(tokenizer)

    def push(self, ids: Sequence[int]) -> str:
        """Text that the new `ids` make final: no later id changes it."""
        return self._pieces.push([token_id for token_id in ids if token_id not in self._skipped])

    def finish(self) -> str:
        """The text that was held back, with U+FFFD for an incomplete character. Call it once, after the last push."""
        return self._pieces.finish()


class _ByteStream:
    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, ids: list[int]) -> str:
        tokens = (self._tokenizer.token_string(token_id) for token_id in ids)
        return self._decoder.decode(b"".join(token_bytes(token) for token in tokens if token is not None))

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class _Window:
    """Decodes `context + new ids` and gives what goes beyond the text of `context`.

    A run of byte tokens is decoded as a whole: valid UTF-8 is text, and one bad byte makes all bytes of the run U+FFFD.
    So a run is held back until another token ends it, and is not decoded before: a long one would take quadratic time.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._context: list[int] = []
        self._context_text = ""
        self._new: list[int] = []
        self._byte_run: list[int] = []

    def push(self, ids: list[int]) -> str:
        grown = False
        for token_id in ids:
            token = self._tokenizer.token_string(token_id)
            if token is None:
                continue
            if self._tokenizer.has_byte_fallback and is_byte_token(token):
                self._byte_run.append(token_id)
            else:
                self._new += [*self._byte_run, token_id]
                self._byte_run.clear()
                grown = True
        return self._take(final=False) if grown else ""

    def finish(self) -> str:
        self._new += self._byte_run
        self._byte_run.clear()
        return self._take(final=True) if self._new else ""

    def _take(self, *, final: bool) -> str:
        text = self._decode(self._context + self._new)
        # Unusual decoders that mix bytes with other steps may end within a character.
        incomplete = text.endswith(_REPLACEMENT) and not self._tokenizer.has_byte_fallback
        if len(text) <= len(self._context_text) or (incomplete and not final):
            return ""
        piece = text[len(self._context_text) :]
        # The next token needs only these before it: they hold text, so it is not at the start of the text.
        self._context, self._new = self._new, []
        self._context_text = self._decode(self._context)
        return piece

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)
