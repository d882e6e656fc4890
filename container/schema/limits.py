"""How large a prompt's fields may be, from their raw bytes alone.

Decoding holds the interpreter's lock from the first byte to the last: tens of megabytes would keep a worker from
answering anything else, /ping included. So what can never fit is refused before it is decoded.

Knows JSON's spelling and the model's context length. Must not know schemas or tokenizers.
"""

import dataclasses

from engine.api import ContextLengthExceeded

# A character outside of Unicode's first plane may be written as a pair of escapes: \ud83d\ude00.
_MAX_BYTES_PER_CHAR = 12
# Keys, brackets and white space, where the context is short.
_SLACK_BYTES = 2**16


@dataclasses.dataclass(frozen=True)
class PromptLimits:
    """What bounds a prompt: the context length, and the longest text of one token (None: no bound is known)."""

    max_model_len: int
    max_token_chars: int | None

    @property
    def max_chars(self) -> int | None:
        """No longer text fits into the context, however it is tokenised."""
        return None if self.max_token_chars is None else self.max_token_chars * self.max_model_len

    def check_bytes(self, num_bytes: int, param: str) -> None:
        """Raises ContextLengthExceeded for the JSON of a text that no tokenisation could make fit."""
        if self.max_chars is not None and num_bytes > _MAX_BYTES_PER_CHAR * self.max_chars + _SLACK_BYTES:
            raise ContextLengthExceeded(
                f"'{param}' is {num_bytes} bytes long, more than this model's maximum context length of "
                f"{self.max_model_len} tokens can hold.",
                param,
            )

    def check_text(self, text: str, param: str) -> None:
        """Raises ContextLengthExceeded for a text that no tokenisation could make fit."""
        if self.max_token_chars is not None and self.max_chars is not None and len(text) > self.max_chars:
            raise ContextLengthExceeded(
                f"The prompt has at least {len(text) // self.max_token_chars} tokens, but this model's maximum context "
                f"length is {self.max_model_len} tokens.",
                param,
            )

    def check_ids(self, num_ids: int, param: str) -> None:
        """Raises ContextLengthExceeded for token ids that leave no room for an output."""
        if num_ids >= self.max_model_len:
            raise ContextLengthExceeded(
                f"The prompt has {num_ids} tokens, but this model's maximum context length is {self.max_model_len} "
                "tokens, of which at least one must be left for the output.",
                param,
            )


def num_bytes(raw: memoryview | bytes) -> int:
    """Length of raw JSON."""
    return len(memoryview(raw))


def num_strings(raw: bytes) -> int:
    """How many strings, keys included, valid JSON holds, without decoding it."""
    # Pairs of backslashes first: what is left of a run of them tells whether the quote after it is escaped.
    if b"\\" in raw:
        raw = raw.replace(b"\\\\", b"").replace(b'\\"', b"")
    return raw.count(b'"') // 2
