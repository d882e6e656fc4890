"""The tokenizer: loading, special tokens, bad text, and the bound that makes a too-long prompt cheap to refuse."""

import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers

from engine.api import InvalidRequest
from engine.text import Tokenizer
from engine.text.byte_alphabet import BYTE_OF_CHAR
from tests.unit.text.builders import build_byte_fallback, build_byte_level, save


def test_text_survives_a_round_trip(byte_level: Tokenizer) -> None:
    text = "Hello 世界 🎉\n\ttab \0 end"
    assert byte_level.decode(byte_level.encode(text)) == text


def test_special_tokens_come_from_the_post_processor(byte_fallback: Tokenizer) -> None:
    with_bos = byte_fallback.encode("Hello")
    assert with_bos[0] == 1
    assert byte_fallback.encode("Hello", add_special_tokens=False) == with_bos[1:]
    assert byte_fallback.decode(with_bos) == "Hello"
    assert byte_fallback.decode(with_bos, skip_special_tokens=False).startswith("<s>")


def test_special_tokens_in_a_text_are_special(byte_level: Tokenizer) -> None:
    (token_id,) = byte_level.encode("<|im_end|>")
    assert token_id in byte_level.special_ids
    (token_id,) = byte_level.encode("<tool_call>")
    assert token_id not in byte_level.special_ids


@pytest.mark.parametrize("text", ["a\ud800b", "\udfff", "Hello \udc80"])
def test_a_lone_surrogate_is_the_callers_fault(byte_level: Tokenizer, text: str) -> None:
    with pytest.raises(InvalidRequest, match="surrogate"):
        byte_level.encode(text)


def test_something_else_than_text_is_a_bug(byte_level: Tokenizer) -> None:
    with pytest.raises((TypeError, AttributeError)):
        byte_level.encode(3)  # type: ignore[arg-type]


def test_names_of_special_tokens(tmp_path: Path) -> None:
    save(build_byte_level(), tmp_path, eos_token={"content": "<|im_end|>", "special": True}, bos_token=None)
    (tmp_path / "special_tokens_map.json").write_text(
        json.dumps({"eos_token": "<|endoftext|>", "pad_token": {"content": "<|endoftext|>"}}), encoding="utf-8"
    )
    assert Tokenizer.from_dir(tmp_path).special_tokens == {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}


def test_padding_and_truncation_of_training_are_off(tmp_path: Path) -> None:
    built = build_byte_level()
    built.enable_truncation(4)
    built.enable_padding(length=64)
    tokenizer = Tokenizer.from_dir(save(built, tmp_path))
    assert tokenizer.decode(tokenizer.encode("Hello world, " * 9)) == "Hello world, " * 9


def test_a_missing_or_bad_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no tokenizer\.json"):
        Tokenizer.from_dir(tmp_path)
    for content in ("", "{}", "[1]", '{"model": 3}'):
        (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match=r"tokenizer\.json is not a tokenizer"):
            Tokenizer.from_dir(tmp_path)
    save(build_byte_level(), tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"tokenizer_config\.json is not valid JSON"):
        Tokenizer.from_dir(tmp_path)


def test_ids_without_a_token_are_empty(byte_level: Tokenizer) -> None:
    assert byte_level.decode([byte_level.vocab_size + 5]) == ""


def test_the_byte_alphabet() -> None:
    assert set(BYTE_OF_CHAR) == set(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(BYTE_OF_CHAR.values()) == list(range(256))


@given(text=st.text(max_size=40))
def test_no_token_stands_for_more_characters_than_the_bound(byte_level: Tokenizer, text: str) -> None:
    bound = byte_level.max_token_chars
    assert bound is not None
    assert len(text) <= bound * len(byte_level.encode(text, add_special_tokens=False))


@given(text=st.text(alphabet=st.sampled_from("e\u0301\u0308o\u0323\u1f82\u0345ab 각ᄀ\u1161\u11a8"), max_size=40))
def test_the_bound_allows_for_nfc(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    built = build_byte_level()
    built.normalizer = normalizers.NFC()
    tokenizer = Tokenizer(built, {})
    bound = tokenizer.max_token_chars
    assert bound is not None
    assert len(text) <= bound * len(tokenizer.encode(text, add_special_tokens=False))


def _with_normalizer(normalizer: object) -> tokenizers.Tokenizer:
    built = build_byte_level()
    built.normalizer = normalizer  # type: ignore[assignment]
    return built


def _with_greedy_token() -> tokenizers.Tokenizer:
    built = build_byte_level()
    built.add_special_tokens([tokenizers.AddedToken("<mask>", lstrip=True)])
    return built


def test_the_bound_is_unknown_where_text_may_vanish(metaspace: Tokenizer, byte_fallback: Tokenizer) -> None:
    assert byte_fallback.max_token_chars is not None
    assert metaspace.max_token_chars is None
    words = tokenizers.Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    no_bytes = build_byte_fallback()
    no_bytes.model.byte_fallback = False
    unsafe = [
        words,
        no_bytes,
        _with_greedy_token(),
        _with_normalizer(normalizers.NFKC()),
        _with_normalizer(normalizers.Strip()),
        _with_normalizer(normalizers.Replace(tokenizers.Regex(" {2,}"), " ")),
        _with_normalizer(normalizers.Sequence([normalizers.NFC(), normalizers.Replace("  ", " ")])),
    ]
    assert [Tokenizer(built, {}).max_token_chars for built in unsafe] == [None] * len(unsafe)
