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
MAX_LOGPROBS = 20
MAX_LOGIT_BIAS = 100.0
MAX_LOGIT_BIASES = 1024
MAX_BAD_WORDS = 256
MAX_BAD_WORD_CHARS = 256
# Beyond these a logit could leave float32: infinities and NaN, that no sampler can choose among.
MIN_REPETITION_PENALTY = 0.01
MAX_REPETITION_PENALTY = 100.0
_INT63 = 2**63
_LISTS = ("stop", "stop_token_ids", "bad_words", "allowed_token_ids")
_OPTIONAL_INTEGERS = ("seed", "max_tokens", "logprobs", "prompt_logprobs")


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Sampling and stopping of one request. Raises InvalidRequest, naming the field, when a value is out of range.

    temperature: 0 is greedy (argmax); otherwise the logits are divided by it.
    top_k: only the k most likely tokens may be chosen; 0 or -1 is all of them.
    top_p: only the smallest set of tokens whose probabilities sum to at least top_p, in (0, 1].
    min_p: only tokens at least min_p times as likely as the most likely one, in [0, 1].
    presence_penalty, frequency_penalty: subtracted from the logit of a token that the output holds already; once, and
        once per occurrence. Between -2 and 2.
    repetition_penalty: logits of tokens that prompt or output hold are divided by it where positive, else multiplied.
    logit_bias: added to the logits of these token ids; -100 to 100.
    bad_words: texts that the output must not contain, as far as one tokenisation of each can tell.
    allowed_token_ids: only these tokens may be chosen; None is all.
    min_tokens: neither the end-of-sequence ids, nor `stop_token_ids`, nor `stop` end the output before this many.
    logprobs: for each new token its log-probability and those of this many most likely ones; None for none at all.
    prompt_logprobs: the same for the prompt's tokens. Log-probabilities are those of the model's own logits, before
        penalties, bias, temperature and truncation.
    seed: with one, the same random numbers and so the same tokens at every call, in any company (docs/fidelity.md).
    n: how many sequences are generated for the prompt.
    max_tokens: most tokens to generate; None is as many as max_model_len leaves.
    stop: strings that end the output; they are not part of it unless `include_stop_str_in_output`.
    stop_token_ids: token ids that end the output, besides the model's own end-of-sequence ids.
    ignore_eos: go on past the model's end-of-sequence ids.
    skip_special_tokens: leave special tokens out of the text.
    include_stop_str_in_output: what ended the output, a stop string or a stop token, is the end of the text.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    bad_words: tuple[str, ...] = ()
    allowed_token_ids: tuple[int, ...] | None = None
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    seed: int | None = None
    n: int = 1
    max_tokens: int | None = 16
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False

    def __post_init__(self) -> None:
        # vLLM's users write lists, and a single stop string; the struct is frozen and hashable all the same.
        if isinstance(self.stop, str):
            msgspec.structs.force_setattr(self, "stop", (self.stop,))
        for name in _LISTS:
            value = getattr(self, name)
            is_absent = value is None and name == "allowed_token_ids"
            if not isinstance(value, tuple) and not is_absent:
                _require(value is None or isinstance(value, list), name, "a list")
                msgspec.structs.force_setattr(self, name, tuple(value or ()))
        if self.logit_bias is None:
            msgspec.structs.force_setattr(self, "logit_bias", {})
        self._check_types()
        if self.top_k == -1:
            msgspec.structs.force_setattr(self, "top_k", 0)
        self._check_ranges()
        self._check_stops()
        self._check_token_choices()

    @property
    def has_penalties(self) -> bool:
        """Whether the tokens so far change the logits."""
        return bool(self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1.0)

    def _check_types(self) -> None:
        # msgspec checks what it decodes, not what Python code passes in.
        for name in ("top_k", "n", "min_tokens", *_OPTIONAL_INTEGERS):
            value = getattr(self, name)
            is_absent = value is None and name in _OPTIONAL_INTEGERS
            _require(is_absent or _is_integer(value), name, "an integer")
        for name in ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"):
            _require(_is_number(getattr(self, name)), name, "a number")
        for name in ("ignore_eos", "skip_special_tokens", "include_stop_str_in_output"):
            _require(isinstance(getattr(self, name), bool), name, "true or false")
        _require(all(map(_is_integer, self.stop_token_ids)), "stop_token_ids", "token ids")
        _require(all(map(_is_integer, self.allowed_token_ids or ())), "allowed_token_ids", "token ids")
        _require(isinstance(self.logit_bias, dict), "logit_bias", "a map from token ids to numbers")
        _require(
            all(_is_integer(k) and _is_number(v) for k, v in self.logit_bias.items()),
            "logit_bias",
            "a map from token ids to numbers",
        )

    def _check_ranges(self) -> None:
        _require(0.0 <= self.temperature <= MAX_TEMPERATURE, "temperature", f"between 0 and {MAX_TEMPERATURE:g}")
        _require(0 <= self.top_k < 2**31, "top_k", "0 or -1 (all tokens) or a positive 32-bit integer")
        _require(0.0 < self.top_p <= 1.0, "top_p", "greater than 0 and at most 1")
        _require(0.0 <= self.min_p <= 1.0, "min_p", "between 0 and 1")
        for name in ("presence_penalty", "frequency_penalty"):
            _require(-2.0 <= getattr(self, name) <= 2.0, name, "between -2 and 2")
        _require(
            MIN_REPETITION_PENALTY <= self.repetition_penalty <= MAX_REPETITION_PENALTY,
            "repetition_penalty",
            f"between {MIN_REPETITION_PENALTY:g} and {MAX_REPETITION_PENALTY:g}",
        )
        _require(1 <= self.n <= MAX_N, "n", f"between 1 and {MAX_N}")
        if self.seed is not None:
            _require(-_INT63 <= self.seed < _INT63, "seed", "a signed 64-bit integer")
        if self.max_tokens is not None:
            _require(self.max_tokens >= 1, "max_tokens", "at least 1")
        most = "at least 0" if self.max_tokens is None else "between 0 and 'max_tokens'"
        _require(0 <= self.min_tokens <= (self.max_tokens or _INT63), "min_tokens", most)
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            _require(value is None or 0 <= value <= MAX_LOGPROBS, name, f"between 0 and {MAX_LOGPROBS}")

    def _check_stops(self) -> None:
        _check_texts("stop", self.stop, MAX_STOP_STRINGS, MAX_STOP_STRING_CHARS)
        _require(
            len(self.stop_token_ids) <= MAX_STOP_TOKEN_IDS, "stop_token_ids", f"at most {MAX_STOP_TOKEN_IDS} token ids"
        )

    def _check_token_choices(self) -> None:
        _check_texts("bad_words", self.bad_words, MAX_BAD_WORDS, MAX_BAD_WORD_CHARS)
        _require(self.allowed_token_ids != (), "allowed_token_ids", "at least one token id")
        _require(len(self.logit_bias) <= MAX_LOGIT_BIASES, "logit_bias", f"at most {MAX_LOGIT_BIASES} token ids")
        _require(
            all(-MAX_LOGIT_BIAS <= value <= MAX_LOGIT_BIAS for value in self.logit_bias.values()),
            "logit_bias",
            f"values between {-MAX_LOGIT_BIAS:g} and {MAX_LOGIT_BIAS:g}",
        )


def _check_texts(name: str, texts: tuple[str, ...], max_num: int, max_chars: int) -> None:
    _require(len(texts) <= max_num, name, f"at most {max_num} strings")
    for text in texts:
        _require(
            isinstance(text, str) and 0 < len(text) <= max_chars,
            name,
            f"non-empty strings of at most {max_chars} characters",
        )


def _is_number(value: object) -> bool:
    return isinstance(value, float) or _is_integer(value)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _require(holds: bool, param: str, expected: str) -> None:
    # A NaN fails every comparison, so it is refused here too.
    if not holds:
        raise InvalidRequest(f"'{param}' must be {expected}.", param)
