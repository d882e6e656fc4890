"""One token as text and bytes, and words as the ids that must not be generated."""

import pytest

from engine.api import InvalidRequest
from engine.text import Tokenizer, bad_words_ids

TEXT = "Hello world 你好 é 🎉 Hello"


def test_the_bytes_of_byte_level_tokens_add_up_to_the_text(byte_level: Tokenizer) -> None:
    ids = byte_level.encode(TEXT)
    assert b"".join(map(byte_level.token_bytes, ids)).decode() == TEXT
    [end] = byte_level.encode("<|im_end|>")
    [added] = byte_level.encode("日本")
    assert byte_level.token_text(end) == "<|im_end|>"
    assert byte_level.token_text(added) == "日本"
    assert byte_level.token_bytes(10**6) == b""
    assert byte_level.token_text(10**6) == ""


def test_a_part_of_a_character_is_named_by_its_bytes(byte_level: Tokenizer) -> None:
    names = [byte_level.token_text(token_id) for token_id in byte_level.encode("\U0001f004")]
    assert "bytes:" + "".join(name.removeprefix("bytes:") for name in names) == "bytes:\\xf0\\x9f\\x80\\x84"


def test_other_vocabularies_keep_the_space_before_a_word(
    byte_fallback: Tokenizer, gemma_like: Tokenizer, metaspace: Tokenizer
) -> None:
    for tokenizer, token, text in (
        (byte_fallback, "▁Hello", " Hello"),
        (gemma_like, "▁Hello", " Hello"),
        (metaspace, "▁Hello", " Hello"),
        (byte_fallback, "ld", "ld"),
        (byte_fallback, "▁", " "),
        (byte_fallback, "<s>", "<s>"),
        (byte_fallback, "<0xE4>", "bytes:\\xe4"),
        (byte_fallback, "<0x41>", "A"),
    ):
        token_id = tokenizer._tokenizer.token_to_id(token)
        assert tokenizer.token_text(token_id) == text


def test_a_bad_word_counts_at_the_start_and_within_a_text(byte_level: Tokenizer) -> None:
    def spelled(*words: str) -> set[str]:
        found = bad_words_ids(byte_level, words, byte_level.vocab_size)
        assert len(set(found)) == len(found)
        return {byte_level.decode(ids, skip_special_tokens=False) for ids in found}

    # " world" is one token and "world" is several; "q" is one, and " q" a token for the space and that one.
    assert len(byte_level.encode(" world")) == 1 < len(byte_level.encode("world"))
    assert spelled("world") == spelled(" world") == {"world", " world"}
    assert byte_level.encode(" q")[1:] == byte_level.encode("q")
    assert spelled("q") == {"q"}
    assert spelled(" ") == {" "}
    assert spelled("<|im_end|>") >= {"<|im_end|>"}
    assert bad_words_ids(byte_level, ["world"], 1) == ()


def test_a_bad_word_has_no_special_tokens_around_it(byte_fallback: Tokenizer) -> None:
    [ids, *_] = bad_words_ids(byte_fallback, ["Hello"], byte_fallback.vocab_size)
    assert not set(ids) & byte_fallback.special_ids


def test_a_bad_word_must_be_unicode(byte_level: Tokenizer) -> None:
    with pytest.raises(InvalidRequest) as refused:
        bad_words_ids(byte_level, ["\ud800"], 1000)
    assert refused.value.param == "bad_words"
