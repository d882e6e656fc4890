"""The body of /v1/completions.

Knows OpenAI's fields. Must not know tokenisers or responses.
"""

import msgspec

from container.schema.fields import NOTHING, FieldRule, RawBody, read
from container.schema.limits import PromptLimits
from container.schema.prompts import Prompt, read_prompts
from container.schema.sampling import SHARED_NEUTRAL, WITHOUT_EFFECT, SamplingFields
from engine.api import MAX_N, InvalidRequest, ModelInfo, SamplingParams

MAX_SEQUENCES = 1024

RULE = FieldRule(
    neutral={**SHARED_NEUTRAL, "add_special_tokens": (True,), "suffix": ("",), "prompt_embeds": NOTHING},
    without_effect=WITHOUT_EFFECT,
    max_bytes={"prompt": None},
)


class CompletionRequest(SamplingFields, kw_only=True):
    """The fields of /v1/completions that take effect."""

    prompt: msgspec.Raw
    max_tokens: int = 16
    best_of: int | None = None
    echo: bool = False
    # False is what Python clients send for none; 0 asks for the chosen tokens' own.
    logprobs: int | bool | None = None

    @property
    def num_logprobs(self) -> int | None:
        """How many of the most likely tokens the answer shows at each place; None for no log-probabilities."""
        return None if isinstance(self.logprobs, bool) else self.logprobs

    @property
    def generates_nothing(self) -> bool:
        """Whether the prompt alone is asked for; the engine still makes one token, which nobody sees."""
        return self.echo and self.max_tokens == 0

    def params(self, info: ModelInfo) -> SamplingParams:
        """The engine's parameters: all of `best_of` are generated, and the echoed prompt's tokens are weighed too."""
        num_generated = self.n if self.best_of is None else self.best_of
        logprobs = self.num_logprobs
        params = self.to_params(info, 1 if self.generates_nothing else self.max_tokens, logprobs)
        if num_generated > self.n:
            # The best are told by their log-probabilities.
            params = msgspec.structs.replace(params, n=num_generated, logprobs=logprobs or 0)
        if self.echo and logprobs is not None:
            params = msgspec.structs.replace(params, prompt_logprobs=max(logprobs, self.prompt_logprobs or 0))
        return params

    def names(self) -> dict[str, str]:
        """The engine's names for what this request calls otherwise."""
        names = {"prompt_logprobs": "logprobs"} if self.prompt_logprobs is None else {}
        return names if self.num_logprobs is not None else {**names, "logprobs": "best_of"}


def read_completion(raw: RawBody, limits: PromptLimits) -> tuple[CompletionRequest, list[Prompt]]:
    """The request of a body, and its prompts. Raises InvalidRequest or ContextLengthExceeded, naming the field."""
    request = read(raw, CompletionRequest, RULE)
    request.check()
    if request.logprobs is True:
        raise InvalidRequest("'logprobs' must be a number here, not true.", "logprobs")
    if request.generates_nothing and request.min_tokens:
        raise InvalidRequest("'min_tokens' contradicts 'max_tokens' of 0.", "min_tokens")
    best_of = request.n if request.best_of is None else request.best_of
    if request.best_of is not None and not request.n <= best_of <= MAX_N:
        raise InvalidRequest(f"'best_of' must be at least 'n' and at most {MAX_N}.", "best_of")
    if request.stream and best_of > request.n:
        raise InvalidRequest("'best_of' greater than 'n' cannot be streamed.", "best_of")
    prompts = read_prompts(request.prompt, limits)
    if 1 <= best_of <= MAX_N and len(prompts) * best_of > MAX_SEQUENCES:
        name = "n" if best_of == request.n else "best_of"
        raise InvalidRequest(f"The number of prompts times '{name}' must be at most {MAX_SEQUENCES}.", name)
    return request, prompts
