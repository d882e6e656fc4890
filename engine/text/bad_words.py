"""Texts that an output must not contain, as the token ids that would spell them.

Knows tokenizers. Must not know how the engine keeps such ids out.
"""

from collections.abc import Iterable

from engine.api import InvalidRequest
from engine.text.tokenizer import Tokenizer


def bad_words_ids(tokenizer: Tokenizer, words: Iterable[str], vocab_size: int) -> tuple[tuple[int, ...], ...]:
    """The token ids of each word, at the start of a text and, where tokens hold the space before a word, within one.

    Both forms of a word count, whether or not it was written with a space. The form with a space is left out where it
    ends with the other one, which catches it then. Ids from `vocab_size` on cannot be generated; a form with one is
    left out. Raises InvalidRequest for "bad_words" where a word is not valid Unicode.
    """
    found: dict[tuple[int, ...], None] = {}
    for word in words:
        bare = word.lstrip() or word
        plain = _encode(tokenizer, bare)
        spaced = _encode(tokenizer, " " + bare)
        forms = [plain]
        if spaced[len(spaced) - len(plain) :] != plain:
            forms.append(spaced)
        for form in forms:
            if form and max(form) < vocab_size:
                found[form] = None
    return tuple(found)


def _encode(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    try:
        return tuple(tokenizer.encode(text, add_special_tokens=False))
    except InvalidRequest as error:
        raise InvalidRequest(error.message, "bad_words") from None
