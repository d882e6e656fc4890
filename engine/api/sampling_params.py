"""How the tokens of one request are chosen and when it ends.

The names are vLLM's. Knows the valid range of each field; must not know the model (ids are checked against the
vocabulary by `check_request`).
"""

import msgspec

from engine.api.errors import InvalidRequest

MAX_N = 128
MAX_STOP_STRINGS = 16
MAX_STOP_STRING_CHARS = 1024
MAX_STOP_TOKEN_IDS = 256
MAX_TEMPERATURE = 100.0
_INT63 = 2**63


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Sampling and stopping of one request. Raises InvalidRequest, naming the field, when a value is out of range.

    temperature: 0 is greedy (argmax); otherwise the logits are divided by it.
    top_k: only the k most likely tokens may be chosen; 0 or -1 is all of them.
    top_p: only the smallest set of tokens whose probabilities sum to at least top_p, in (0, 1].
    seed: with one, the same random numbers at every call, so the same tokens as far as the arithmetic is the same: in
        float32 that is so in any company; in bfloat16 other requests in the batch can turn a near-tie.
    n: how many sequences are generated for the prompt.
    max_tokens: most tokens to generate; None is as many as max_model_len leaves.
    stop: strings that end the output; they are not part of it.
    stop_token_ids: token ids that end the output, besides the model's own end-of-sequence ids.
    ignore_eos: go on past the model's end-of-sequence ids.
    skip_special_tokens: leave special tokens out of the text.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    n: int = 1
    max_tokens: int | None = 16
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    skip_special_tokens: bool = True

    def __post_init__(self) -> None:
        # vLLM's users write lists, and a single stop string; the struct is frozen and hashable all the same.
        if isinstance(self.stop, str):
            msgspec.structs.force_setattr(self, "stop", (self.stop,))
        for name in ("stop", "stop_token_ids"):
            value = getattr(self, name)
            if not isinstance(value, tuple):
                _require(value is None or isinstance(value, list), name, "a list")
                msgspec.structs.force_setattr(self, name, tuple(value or ()))
        self._check_types()
        if self.top_k == -1:
            msgspec.structs.force_setattr(self, "top_k", 0)
        self._check_ranges()
        self._check_stops()

    def _check_types(self) -> None:
        # msgspec checks what it decodes, not what Python code passes in.
        for name in ("top_k", "n", "seed", "max_tokens"):
            value = getattr(self, name)
            is_absent = value is None and name in ("seed", "max_tokens")
            _require(is_absent or _is_integer(value), name, "an integer")
        for name in ("temperature", "top_p"):
            value = getattr(self, name)
            _require(isinstance(value, float) or _is_integer(value), name, "a number")
        for name in ("ignore_eos", "skip_special_tokens"):
            _require(isinstance(getattr(self, name), bool), name, "true or false")
        _require(all(map(_is_integer, self.stop_token_ids)), "stop_token_ids", "token ids")

    def _check_ranges(self) -> None:
        _require(0.0 <= self.temperature <= MAX_TEMPERATURE, "temperature", f"between 0 and {MAX_TEMPERATURE:g}")
        _require(0 <= self.top_k < 2**31, "top_k", "0 or -1 (all tokens) or a positive 32-bit integer")
        _require(0.0 < self.top_p <= 1.0, "top_p", "greater than 0 and at most 1")
        _require(1 <= self.n <= MAX_N, "n", f"between 1 and {MAX_N}")
        if self.seed is not None:
            _require(-_INT63 <= self.seed < _INT63, "seed", "a signed 64-bit integer")
        if self.max_tokens is not None:
            _require(self.max_tokens >= 1, "max_tokens", "at least 1")

    def _check_stops(self) -> None:
        _require(len(self.stop) <= MAX_STOP_STRINGS, "stop", f"at most {MAX_STOP_STRINGS} strings")
        for text in self.stop:
            _require(
                isinstance(text, str) and 0 < len(text) <= MAX_STOP_STRING_CHARS,
                "stop",
                f"non-empty strings of at most {MAX_STOP_STRING_CHARS} characters",
            )
        _require(
            len(self.stop_token_ids) <= MAX_STOP_TOKEN_IDS, "stop_token_ids", f"at most {MAX_STOP_TOKEN_IDS} token ids"
        )


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _require(holds: bool, param: str, expected: str) -> None:
    # A NaN fails every comparison, so it is refused here too.
    if not holds:
        raise InvalidRequest(f"'{param}' must be {expected}.", param)
