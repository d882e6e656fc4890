"""The body of /v1/completions.

Knows OpenAI's fields and the four forms of a prompt. Must not know tokenisers or responses.
"""

from container.schema.fields import FieldRule, RawBody, read
from container.schema.sampling import SHARED_NEUTRAL, WITHOUT_EFFECT, SamplingFields
from engine.api import InvalidRequest, ModelInfo, SamplingParams

MAX_PROMPTS = 1024
MAX_SEQUENCES = 1024
Prompt = str | list[int]

_RULE = FieldRule(
    # `logprobs` is a number here: 0 would ask for the chosen token's, so only null is neutral.
    neutral={**SHARED_NEUTRAL, "logprobs": (False,), "suffix": ("",), "prompt_embeds": ()},
    without_effect=WITHOUT_EFFECT,
)


class CompletionRequest(SamplingFields, kw_only=True):
    """The fields of /v1/completions that take effect."""

    prompt: str | list[str | int | list[int]]
    max_tokens: int = 16
    best_of: int | None = None

    def params(self, info: ModelInfo) -> SamplingParams:
        """The engine's parameters."""
        return self.to_params(info, self.max_tokens)

    def prompts(self) -> list[Prompt]:
        """The prompts, one by one, as text or token ids. Raises InvalidRequest for a mixture."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        ids = [part for part in self.prompt if isinstance(part, int)]
        if ids and len(ids) == len(self.prompt):
            return [ids]
        many: list[Prompt] = [part for part in self.prompt if not isinstance(part, int)]
        if len(many) != len(self.prompt) or len({type(part) for part in many}) > 1:
            raise InvalidRequest(
                "'prompt' must be a string, a list of strings, a list of token ids, or a list of those.", "prompt"
            )
        if not many:
            raise InvalidRequest("'prompt' must have at least one prompt.", "prompt")
        return many


def read_completion(raw: RawBody) -> CompletionRequest:
    """The request of a body. Raises InvalidRequest, naming the field."""
    request = read(raw, CompletionRequest, _RULE)
    request.check_streaming()
    if request.best_of is not None and request.best_of != request.n:
        raise InvalidRequest("'best_of' is not supported here unless it equals 'n'.", "best_of")
    num_prompts = len(request.prompts())
    if num_prompts > MAX_PROMPTS:
        raise InvalidRequest(f"'prompt' has {num_prompts} prompts; at most {MAX_PROMPTS} are allowed.", "prompt")
    if num_prompts * request.n > MAX_SEQUENCES:
        raise InvalidRequest(f"The number of prompts times 'n' must be at most {MAX_SEQUENCES}.", "n")
    return request
