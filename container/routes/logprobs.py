"""Log-probabilities in the forms that clients know: OpenAI's two, vLLM's for a prompt, and TGI's tokens.

Knows token ids, their texts and TokenLogprobs. Must not know requests or whole responses.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from engine.api import TokenLogprobs
from engine.text import Detokenizer, Tokenizer

# JSON has no -inf: what OpenAI sends for a token that is all but impossible.
_MIN_LOGPROB = -9999.0


def finite(logprob: float) -> float:
    """`logprob` as JSON can spell it."""
    return max(logprob, _MIN_LOGPROB)


def chat_logprobs(
    tokenizer: Tokenizer, ids: Sequence[int], entries: Sequence[TokenLogprobs] | None, num_top: int
) -> dict[str, Any] | None:
    """OpenAI's `logprobs` of a chat's choice or chunk; None where there are none."""
    if entries is None:
        return None

    def token(token_id: int, logprob: float) -> dict[str, Any]:
        raw = tokenizer.token_bytes(token_id)
        return {"token": tokenizer.token_text(token_id), "logprob": finite(logprob), "bytes": list(raw)}

    content = [
        {
            **token(token_id, entry.logprob),
            "top_logprobs": [token(*top) for top in zip(entry.top_ids[:num_top], entry.top_logprobs, strict=False)],
        }
        for token_id, entry in zip(ids, entries, strict=True)
    ]
    return {"content": content, "refusal": None}


@dataclasses.dataclass
class CompletionLogprobs:
    """OpenAI's `logprobs` of a completion: parallel lists, with each token's place in the choice's text.

    A place is the number of characters before the token; of tokens that make a character together, all but the last
    stand before it. What a client asked for comes with the token that was chosen, so a map may have one more.
    """

    tokenizer: Tokenizer
    num_top: int
    tokens: list[str] = dataclasses.field(default_factory=list)
    token_logprobs: list[float | None] = dataclasses.field(default_factory=list)
    top_logprobs: list[dict[str, float] | None] = dataclasses.field(default_factory=list)
    text_offset: list[int] = dataclasses.field(default_factory=list)
    _end: int = 0

    def add_prompt(self, ids: Sequence[int], entries: Sequence[TokenLogprobs] | None, text: str) -> None:
        """The tokens of an echoed prompt; nothing predicts the first. `text` is what the choice begins with."""
        detokenizer = Detokenizer(self.tokenizer, skip_special_tokens=False)
        for i, token_id in enumerate(ids):
            self._add(token_id, None if i == 0 or entries is None else entries[i - 1])
            # The tokenizer puts special tokens around a prompt that are not in its text.
            is_unseen = token_id in self.tokenizer.special_ids and not text.startswith(
                self.tokenizer.token_text(token_id), self._end
            )
            if not is_unseen:
                self._end += len(detokenizer.push([token_id]))
        self._end = len(text)

    def add(self, ids: Sequence[int], entries: Sequence[TokenLogprobs], detokenizer: Detokenizer) -> None:
        """Generated tokens; `detokenizer` has seen those before."""
        for token_id, entry in zip(ids, entries, strict=True):
            self._add(token_id, entry)
            self._end += len(detokenizer.push([token_id]))

    def take(self) -> dict[str, Any]:
        """What was added since the last call."""
        taken = {}
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            taken[name] = getattr(self, name)
            setattr(self, name, [])
        return taken

    def _add(self, token_id: int, entry: TokenLogprobs | None) -> None:
        text = self.tokenizer.token_text(token_id)
        self.tokens.append(text)
        self.text_offset.append(self._end)
        self.token_logprobs.append(None if entry is None else finite(entry.logprob))
        tops: dict[str, float] | None = None
        if entry is not None:
            tops = {text: finite(entry.logprob)}
            for top_id, logprob in zip(entry.top_ids[: self.num_top], entry.top_logprobs, strict=False):
                # Of two tokens with one text, the likelier counts.
                tops.setdefault(self.tokenizer.token_text(top_id), finite(logprob))
        self.top_logprobs.append(tops)


def prompt_logprobs(
    tokenizer: Tokenizer, ids: Sequence[int], entries: Sequence[TokenLogprobs] | None, num_top: int
) -> list[dict[str, Any] | None] | None:
    """vLLM's `prompt_logprobs`: per token of the prompt a map from token ids, None for the first token."""
    if entries is None:
        return None
    shown: list[dict[str, Any] | None] = [None]
    for token_id, entry in zip(ids[1:], entries, strict=True):
        tops = zip(entry.top_ids[:num_top], entry.top_logprobs, strict=False)
        ranked = {top_id: (logprob, rank) for rank, (top_id, logprob) in enumerate(tops, start=1)}
        ranked[token_id] = (entry.logprob, entry.rank)
        shown.append(
            {
                str(one): {"logprob": finite(logprob), "rank": rank, "decoded_token": tokenizer.token_text(one)}
                for one, (logprob, rank) in ranked.items()
            }
        )
    return shown


def tgi_token(tokenizer: Tokenizer, token_id: int, text: str, logprob: float | None) -> dict[str, Any]:
    """TGI's token."""
    return {
        "id": token_id,
        "text": text,
        "logprob": None if logprob is None else finite(logprob),
        "special": token_id in tokenizer.special_ids,
    }


def tgi_top_tokens(tokenizer: Tokenizer, entry: TokenLogprobs, num_top: int) -> list[dict[str, Any]]:
    """TGI's list of the most likely tokens at one place."""
    return [
        tgi_token(tokenizer, top_id, tokenizer.token_text(top_id), logprob)
        for top_id, logprob in zip(entry.top_ids[:num_top], entry.top_logprobs, strict=False)
    ]
