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

_RULE = FieldRule(
    # `logprobs` is a number here: 0 would ask for the chosen token's, so only null is neutral.
    neutral={
        **SHARED_NEUTRAL,
        "add_special_tokens": (True,),
        "logprobs": (False,),
        "suffix": ("",),
        "prompt_embeds": NOTHING,
    },
    without_effect=WITHOUT_EFFECT,
    max_bytes={"prompt": None},
)


class CompletionRequest(SamplingFields, kw_only=True):
    """The fields of /v1/completions that take effect."""

    prompt: msgspec.Raw
    max_tokens: int = 16
    best_of: int | None = None

    def params(self, info: ModelInfo) -> SamplingParams:
        """The engine's parameters."""
        return self.to_params(info, self.max_tokens)


def read_completion(raw: RawBody, limits: PromptLimits) -> tuple[CompletionRequest, list[Prompt]]:
    """The request of a body, and its prompts. Raises InvalidRequest or ContextLengthExceeded, naming the field."""
    request = read(raw, CompletionRequest, _RULE)
    request.check_streaming()
    if request.best_of is not None and request.best_of != request.n:
        raise InvalidRequest("'best_of' is not supported here unless it equals 'n'.", "best_of")
    prompts = read_prompts(request.prompt, limits)
    if 1 <= request.n <= MAX_N and len(prompts) * request.n > MAX_SEQUENCES:
        raise InvalidRequest(f"The number of prompts times 'n' must be at most {MAX_SEQUENCES}.", "n")
    return request, prompts
