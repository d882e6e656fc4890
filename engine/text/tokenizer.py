"""Text to token ids and back, from a model directory's tokenizer.json.

Knows the `tokenizers` library and the files that name the special tokens. Must not know chats, streams or the engine.

A special token that a caller writes in a text ("<|im_end|>") is encoded as that token, as vLLM and transformers do:
chat templates rely on it, so a client's message can hold control tokens too. A prompt is no boundary of trust.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from engine.api import InvalidRequest
from engine.text.byte_alphabet import BYTE_OF_CHAR, byte_token, is_byte_token, token_bytes
from engine.text.model_files import read_json_object

_SPECIAL_NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

# A few milliseconds of work; a batch of one costs more than that is worth below.
_MAX_CHARS_UNDER_GIL = 10_000

# NFC turns at most four code points into one (U+1F82 and its like have the longest canonical decompositions).
_MAX_NFC_SHRINKAGE = 4
_KEEPS_LENGTH = frozenset({"ByteLevel", "Lowercase", "NFD", "NFKD", "Prepend"})
_DROPS_NO_TEXT = frozenset({"ByteLevel", "Digits", "Metaspace", "UnicodeScripts", "FixedLength"})


class Tokenizer:
    """A model's tokenizer. Immutable after `from_dir`, so that any thread or greenlet may use it.

    vocab_size: number of tokens, added ones included.
    max_token_chars: no token stands for more characters of a text than this, so that a text of n characters has at
        least n / max_token_chars tokens; None where the tokenizer may drop or merge text without a bound.
    special_tokens: by the names that chat templates use ("bos_token", "eos_token", …); only those that the model has.
    special_ids: ids that `skip_special_tokens` leaves out.
    is_byte_level: whether decoding is the byte-level alphabet and nothing else.
    has_byte_fallback: whether tokens like <0x0A> decode to raw bytes.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, special_tokens: dict[str, str]) -> None:
        # Some models ship tokenizer.json with the padding or truncation of their training.
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer = tokenizer
        self.special_tokens = special_tokens
        added = tokenizer.get_added_tokens_decoder()
        self.special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self.vocab_size: int = tokenizer.get_vocab_size(with_added_tokens=True)
        decoders = [decoder["type"] for decoder in _components(tokenizer.decoder, "decoders")]
        self.is_byte_level = decoders == ["ByteLevel"]
        self.has_byte_fallback = "ByteFallback" in decoders
        self.max_token_chars = _max_token_chars(tokenizer)

    @classmethod
    def from_dir(cls, path: str | Path) -> "Tokenizer":
        """The tokenizer of a model directory. Raises ValueError, in one line, when tokenizer.json is missing or bad."""
        file = Path(path) / "tokenizer.json"
        if not file.is_file():
            raise ValueError(
                f"{path} has no tokenizer.json: save the model's fast tokenizer beside its weights "
                "(transformers' save_pretrained writes it)"
            )
        try:
            content = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{file} cannot be read: {error}") from error
        try:
            tokenizer = tokenizers.Tokenizer.from_str(content)
        except Exception as error:  # the library raises a bare Exception for every bad file
            raise ValueError(f"{file} is not a tokenizer that `tokenizers` can load: {error}") from error
        return cls(tokenizer, _read_special_tokens(Path(path)))

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`; with `add_special_tokens`, with those that the model's post-processor puts around it.

        Raises InvalidRequest when the text holds half of a surrogate pair, which no UTF-8 text can.
        """
        try:
            if len(text) > _MAX_CHARS_UNDER_GIL:
                # The library lets other threads run during a batch, and only then; "fast" is without offsets.
                return list(self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids)
            return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)
        except TypeError:
            try:
                text.encode("utf-8")
            except UnicodeEncodeError as error:
                raise InvalidRequest(
                    f"The text is not valid Unicode: character {error.start} is half of a surrogate pair."
                ) from error
            raise

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of `ids`; ids without a token count as empty."""
        return self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def token_string(self, token_id: int) -> str | None:
        """The token as the vocabulary spells it ("Ġhello", "<0x0A>"), or None where the id has no token."""
        return self._tokenizer.id_to_token(token_id)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one token adds within a text; they may be less than a character. An id without a token: none.

        A special token's are those of its name.
        """
        token = self.token_string(token_id)
        if token is None:
            return b""
        if self.is_byte_level:
            return token_bytes(token)
        if self.has_byte_fallback and is_byte_token(token):
            return bytes([int(token[3:5], 16)])
        # Decoders drop a space at the start of a text: what the token adds to itself is its text elsewhere.
        once, twice = (self.decode([token_id] * count, skip_special_tokens=False) for count in (1, 2))
        return (twice.removeprefix(once) or once).encode()

    def token_text(self, token_id: int) -> str:
        """One token as a text of its own; with OpenAI's spelling, `bytes:\\xe2\\x80`, where it is not valid UTF-8."""
        raw = self.token_bytes(token_id)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _read_special_tokens(path: Path) -> dict[str, str]:
    # tokenizer_config.json is what transformers writes today and reads first.
    files = [read_json_object(path / name) for name in ("tokenizer_config.json", "special_tokens_map.json")]
    found: dict[str, str] = {}
    for name in _SPECIAL_NAMES:
        for file in files:
            token = file.get(name)
            if isinstance(token, dict):
                token = token.get("content")
            if isinstance(token, str):
                found[name] = token
                break
    return found


def _components(component: Any, list_name: str) -> list[dict[str, Any]]:
    """A normalizer, pre-tokenizer or decoder as the list of its parts' JSON, sequences flattened."""
    if component is None:
        return []

    def flatten(state: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if state["type"] == "Sequence":
            for part in state[list_name]:
                yield from flatten(part)
        else:
            yield state

    # The only way to one component's JSON that does not serialise the whole vocabulary.
    return list(flatten(json.loads(component.__getstate__())))


def _max_token_chars(tokenizer: tokenizers.Tokenizer) -> int | None:
    shrinkage = 1
    normalizers = _components(tokenizer.normalizer, "normalizers")
    pre_tokenizers = _components(tokenizer.pre_tokenizer, "pretokenizers")
    for normalizer in normalizers:
        if normalizer["type"] == "NFC":
            shrinkage *= _MAX_NFC_SHRINKAGE
        elif normalizer["type"] == "Replace":
            pattern = normalizer["pattern"].get("String")
            if pattern is None or len(normalizer["content"]) < len(pattern):
                return None
        elif normalizer["type"] not in _KEEPS_LENGTH:
            return None
    for pre_tokenizer in pre_tokenizers:
        keeps = pre_tokenizer["type"] in _DROPS_NO_TEXT or pre_tokenizer.get("behavior", "Removed") != "Removed"
        if not keeps:
            return None
    # Such tokens take any amount of white space beside them with them.
    if any(token.lstrip or token.rstrip for token in tokenizer.get_added_tokens_decoder().values()):
        return None
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    # A character that no token covers becomes "unknown" or vanishes, with any number of neighbours.
    byte_level = any(part["type"] == "ByteLevel" for part in normalizers + pre_tokenizers)
    covers_all = (byte_level and all(char in vocab for char in BYTE_OF_CHAR)) or (
        getattr(tokenizer.model, "byte_fallback", False) and all(byte_token(byte) in vocab for byte in range(256))
    )
    return max(map(len, vocab)) * shrinkage if covers_all else None
