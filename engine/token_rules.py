"""What one sequence's parameters and tokens so far do to the logits of its next token.

`TokenRules` belongs to one sequence object. Knows sampling parameters and numpy; must not know tensors, rows or the
model.
"""

from typing import Any

import numpy as np

from engine.api import GenerateRequest
from engine.sequence import Sequence

IntArray = np.ndarray[Any, np.dtype[np.signedinteger[Any]]]
FloatArray = np.ndarray[Any, np.dtype[np.float32]]
BoolArray = np.ndarray[Any, np.dtype[np.bool_]]

_NOTHING: frozenset[int] = frozenset()


class TokenRules:
    """Allowed ids, bias and bans of one sequence.

    allowed: bool [vocab], which tokens may be chosen, or None for all.

    A ban never takes the last token that a sequence has: then those of min_tokens yield first, and those of bad words
    next, for a contradiction in a request must not end in noise. A bad word with an id that the model does not have can
    never come and bans nothing.
    """

    def __init__(self, sequence: Sequence, vocab_size: int, eos_token_ids: tuple[int, ...]) -> None:
        params = sequence.request.params
        self._sequence = sequence
        self._vocab_size = vocab_size
        self._min_tokens = params.min_tokens
        self._stop_ids = frozenset((*eos_token_ids, *params.stop_token_ids)) if params.min_tokens else _NOTHING
        self._allowed_ids = None if params.allowed_token_ids is None else frozenset(params.allowed_token_ids)
        self.allowed: BoolArray | None = None
        if params.allowed_token_ids is not None:
            self.allowed = np.zeros(vocab_size, dtype=np.bool_)
            self.allowed[list(params.allowed_token_ids)] = True
        words = [word for word in sequence.request.bad_words_ids if word and all(0 <= i < vocab_size for i in word)]
        self._bad_ids = frozenset(word[0] for word in words if len(word) == 1)
        # Longer words by the token before their last: only few have to be compared with the output's end.
        self._bad_words: dict[int, list[tuple[int, ...]]] = {}
        for word in words:
            if len(word) > 1:
                self._bad_words.setdefault(word[-2], []).append(word)
        self._banned = _NOTHING
        self._bias = dict(params.logit_bias)
        self._entries = _as_arrays(self._bias)

    @staticmethod
    def are_needed(sequence: Sequence) -> bool:
        """Whether the sequence's logits are ever changed."""
        params, words = sequence.request.params, sequence.request.bad_words_ids
        has_choices = params.allowed_token_ids is not None or bool(params.logit_bias or words)
        return has_choices or params.has_penalties or params.min_tokens > 0

    @staticmethod
    def read_last_token(request: GenerateRequest) -> bool:
        """Whether the rules of a request's sequences follow from what the last tokens are, and not only how many."""
        return any(len(word) > 1 for word in request.bad_words_ids)

    def bias(self) -> tuple[IntArray, FloatArray]:
        """Token ids int64 [n], each once, and what is added to their logits for the next token; -inf bans one."""
        banned = self._find_banned()
        if banned != self._banned:
            self._banned = banned
            self._entries = _as_arrays({**self._bias, **dict.fromkeys(banned, -np.inf)})
        return self._entries

    def _find_banned(self) -> frozenset[int]:
        bad = self._bad_ids
        if self._bad_words and (ends := self._ends_of_bad_words()):
            bad = bad.union(ends)
        is_early = self._sequence.num_output_tokens < self._min_tokens
        for banned in ((bad | self._stop_ids) if is_early else bad, bad):
            if self._leave_a_token(banned):
                return banned
        return _NOTHING

    def _ends_of_bad_words(self) -> list[int]:
        """The last tokens of the bad words whose other tokens end the output."""
        token_ids, num_output = self._sequence.token_ids, self._sequence.num_output_tokens
        words = self._bad_words.get(token_ids[-1], ()) if num_output else ()
        return [
            word[-1]
            for word in words
            if len(word) - 1 <= num_output and tuple(token_ids[len(token_ids) - len(word) + 1 :]) == word[:-1]
        ]

    def _leave_a_token(self, banned: frozenset[int]) -> bool:
        if self._allowed_ids is None:
            return len(banned) < self._vocab_size
        return len(banned) < len(self._allowed_ids) or not self._allowed_ids <= banned


def _as_arrays(bias: dict[int, float]) -> tuple[IntArray, FloatArray]:
    return np.array(list(bias), dtype=np.int64), np.array(list(bias.values()), dtype=np.float32)
