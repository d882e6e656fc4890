"""The fields about sampling, stopping and streaming that the OpenAI routes share, and the table of neutral values.

Knows vLLM's and OpenAI's field names. Must not know prompts.
"""

import re
from typing import Any

import msgspec

from container.schema.fields import NOTHING
from engine.api import InvalidRequest, ModelInfo, NotFound, SamplingParams

_MAX_INT32 = 2**31 - 1
_MAX_SALT_CHARS = 256
_TOKEN_ID = re.compile(r"0|[1-9][0-9]{0,9}")


class ModelNotFound(NotFound):
    """The request names a model that is not served here."""

    code = "model_not_found"


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """OpenAI's stream_options, with vLLM's addition where it is neutral."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


class SamplingFields(msgspec.Struct, kw_only=True):
    """What /v1/chat/completions and /v1/completions have in common."""

    model: str = ""
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    n: int = 1
    stop: str | list[str] = msgspec.field(default_factory=list)
    seed: int | None = None
    stop_token_ids: list[int] = msgspec.field(default_factory=list)
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] = msgspec.field(default_factory=dict)
    bad_words: list[str] = msgspec.field(default_factory=list)
    allowed_token_ids: list[int] | None = None
    min_tokens: int = 0
    prompt_logprobs: int | None = None
    priority: int = 0
    cache_salt: str | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None

    def check(self) -> None:
        """Raises InvalidRequest for fields that are out of range, or that ask for the impossible together."""
        if self.cache_salt is not None and not 0 < len(self.cache_salt) <= _MAX_SALT_CHARS:
            raise InvalidRequest(f"'cache_salt' must have 1 to {_MAX_SALT_CHARS} characters.", "cache_salt")
        if self.stream and self.prompt_logprobs is not None:
            raise InvalidRequest("'prompt_logprobs' is not supported here with 'stream': true.", "prompt_logprobs")
        self._check_streaming()

    def _check_streaming(self) -> None:
        options = self.stream_options
        if options is None:
            return
        # Without a stream an option may still say that it asks for nothing.
        if not self.stream and (options.include_usage or options.continuous_usage_stats or options.include_obfuscation):
            raise InvalidRequest("'stream_options' needs 'stream': true.", "stream_options")
        for name in ("continuous_usage_stats", "include_obfuscation"):
            if getattr(options, name):
                raise InvalidRequest(f"'stream_options.{name}' is not supported here.", f"stream_options.{name}")

    @property
    def include_usage(self) -> bool:
        """Whether the stream ends with a chunk of token counts."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def to_params(self, info: ModelInfo, max_tokens: int | None, logprobs: int | None) -> SamplingParams:
        """The engine's parameters, with the model's own defaults where the request names none."""
        check_max_tokens(max_tokens)
        return SamplingParams(
            temperature=info.default_temperature if self.temperature is None else self.temperature,
            top_p=info.default_top_p if self.top_p is None else self.top_p,
            top_k=info.default_top_k if self.top_k is None else self.top_k,
            seed=self.seed,
            n=self.n,
            max_tokens=max_tokens,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop),
            stop_token_ids=tuple(self.stop_token_ids),
            ignore_eos=self.ignore_eos,
            skip_special_tokens=self.skip_special_tokens,
            include_stop_str_in_output=self.include_stop_str_in_output,
            min_p=self.min_p or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            repetition_penalty=1.0 if self.repetition_penalty is None else self.repetition_penalty,
            logit_bias=_by_token_id(self.logit_bias),
            bad_words=tuple(self.bad_words),
            allowed_token_ids=None if self.allowed_token_ids is None else tuple(self.allowed_token_ids),
            min_tokens=self.min_tokens,
            logprobs=logprobs,
            prompt_logprobs=self.prompt_logprobs,
        )


def _by_token_id(bias: dict[str, float]) -> dict[int, float]:
    for key in bias:
        if not _TOKEN_ID.fullmatch(key):
            shown = key if len(key) <= 32 else key[:32] + "…"
            raise InvalidRequest(f"The keys of 'logit_bias' must be token ids; '{shown}' is none.", "logit_bias")
    return {int(key): value for key, value in bias.items()}


def check_max_tokens(max_tokens: int | None) -> None:
    """Raises InvalidRequest for a number that no context has; JSON's may have hundreds of digits."""
    if max_tokens is not None and max_tokens > _MAX_INT32:
        raise InvalidRequest(f"'max_tokens' must be at most {_MAX_INT32}.", "max_tokens")


# What clients of SageMaker's images send whatever is served: AWS's samples nothing or the mount, TGI's and LMI's their
# own name. vLLM's call a model by the path that it was given.
_ANY_MODELS = ("", "/opt/ml/model", "tgi", "lmi")


def check_model_name(name: str, info: ModelInfo) -> None:
    """Raises ModelNotFound for the name of another model than the served one."""
    if name not in (info.served_name, info.model_dir, *_ANY_MODELS) and name.rstrip("/") != info.model_dir:
        shown = name if len(name) <= 128 else name[:128] + "…"
        raise ModelNotFound(f"The model '{shown}' does not exist here; '{info.served_name}' is served.", "model")


# Known fields without a place in the engine yet: these values (and null) ask for nothing.
SHARED_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "length_penalty": (1,),
    "use_beam_search": (False,),
    "response_format": ({"type": "text"},),
    "spaces_between_special_tokens": (True,),
    "truncate_prompt_tokens": NOTHING,
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "structured_outputs": NOTHING,
    "guided_json": NOTHING,
    "guided_regex": NOTHING,
    "guided_choice": NOTHING,
    "guided_grammar": NOTHING,
}

# Fields of OpenAI's hosted service that no self-hosted server can give a meaning to.
WITHOUT_EFFECT = frozenset(
    {
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
    }
)
