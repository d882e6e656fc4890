"""Incremental decoding: the pieces add up to the whole, come as soon as they are final, and cost the same each."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.text import Detokenizer, Tokenizer

KINDS = ["byte_level", "byte_fallback", "gemma_like", "metaspace"]


@pytest.fixture(scope="session", params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return request.getfixturevalue(request.param)  # type: ignore[no-any-return]


def pieces(tokenizer: Tokenizer, ids: list[int], sizes: list[int], *, skip: bool = True) -> list[str]:
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=skip)
    found, start = [], 0
    for size in [*sizes, len(ids)]:
        found.append(detokenizer.push(ids[start : start + size]))
        start += size
    return [*found, detokenizer.finish()]


@settings(max_examples=300)
@given(data=st.data(), skip=st.booleans())
def test_pieces_of_random_ids_add_up_to_the_whole(tokenizer: Tokenizer, data: st.DataObject, skip: bool) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 2), max_size=24))
    sizes = data.draw(st.lists(st.integers(0, 3), max_size=24))
    assert "".join(pieces(tokenizer, ids, sizes, skip=skip)) == tokenizer.decode(ids, skip_special_tokens=skip)


@settings(max_examples=200)
@given(text=st.text(alphabet=st.sampled_from("Hello wrd.é世界你好🎉👩‍👧 \n"), max_size=24))
def test_pieces_of_real_text_add_up_and_are_never_broken(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    found = pieces(tokenizer, ids, [1] * len(ids))
    assert "".join(found) == tokenizer.decode(ids)
    assert not any("\ufffd" in piece for piece in found)


def test_a_character_comes_when_it_is_whole(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("🀄")
    assert len(ids) == 3
    assert pieces(byte_level, ids, [1, 1, 1]) == ["", "", "🀄", "", ""]
    assert pieces(byte_level, ids[:2], [1, 1]) == ["", "", "", "\ufffd"]


def test_plain_tokens_are_not_held_back(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("Hello world", add_special_tokens=False)
    detokenizer = Detokenizer(tokenizer, skip_special_tokens=True)
    for end in range(1, len(ids) + 1):
        detokenizer.push(ids[end - 1 : end])
    assert detokenizer.finish() == ""


def test_byte_tokens_wait_for_the_end_of_their_run(byte_fallback: Tokenizer) -> None:
    ids = byte_fallback.encode("Hello 你.", add_special_tokens=False)
    found = pieces(byte_fallback, ids, [1] * len(ids))
    assert [piece for piece in found if piece] == ["H", "e", "l", "l", "o", " ", "你."]
    # The end of the text ends a run too, and one broken byte spoils it all, as in the decoder itself.
    assert "".join(pieces(byte_fallback, ids[:-1], [])) == "Hello 你"
    assert "".join(pieces(byte_fallback, ids[:-2], [])) == "Hello \ufffd\ufffd"


@pytest.mark.parametrize("token_id_of", ["broken byte", "text"])
def test_decoding_takes_linear_time(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, token_id_of: str) -> None:
    """Counts the ids that are decoded again: a byte that never becomes a character must not make a window grow."""
    decoded = 0
    decode = Tokenizer.decode

    def counting(self: Tokenizer, ids: list[int], *, skip_special_tokens: bool = True) -> str:
        nonlocal decoded
        decoded += len(ids)
        return decode(self, ids, skip_special_tokens=skip_special_tokens)

    monkeypatch.setattr(Tokenizer, "decode", counting)
    broken = "ÿ" if tokenizer.is_byte_level else "<0xFF>"
    ids = [i for i in range(tokenizer.vocab_size) if tokenizer.token_string(i) == broken]
    if token_id_of == "text" or not ids:
        ids = tokenizer.encode("Hello", add_special_tokens=False)
    pieces(tokenizer, ids * 500, [1] * (500 * len(ids)))
    assert decoded <= 5 * 500 * len(ids)
