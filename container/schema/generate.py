"""TGI's body: {"inputs": …, "parameters": {…}, "stream": …}, which SageMaker's Hugging Face clients send.

`inputs` is a text, or as in LMI a list of texts; LMI's further parameters have a meaning too.

Knows TGI's and LMI's names. Must not know responses.
"""

import dataclasses

import msgspec

from container.config import InputsForm
from container.schema.completions import MAX_SEQUENCES
from container.schema.fields import NOTHING, FieldRule, RawBody, read
from container.schema.limits import PromptLimits
from container.schema.prompts import read_texts
from container.schema.sampling import check_max_tokens
from engine.api import InvalidRequest, SamplingParams

# The engine's names for what TGI calls otherwise.
NAMES = {
    "prompt": "inputs",
    "max_tokens": "parameters.max_new_tokens",
    "logprobs": "parameters.top_n_tokens",
    "n": "parameters.best_of",
    "prompt_logprobs": "parameters.decoder_input_details",
    "ignore_eos": "parameters.ignore_eos_token",
    **{
        name: f"parameters.{name}"
        for name in (
            "temperature",
            "top_k",
            "top_p",
            "min_p",
            "seed",
            "stop",
            "repetition_penalty",
            "frequency_penalty",
            "presence_penalty",
            "min_tokens",
            "stop_token_ids",
        )
    },
}

# What TGI 3 and LMI take when a request names no `max_new_tokens`.
_DEFAULT_MAX_NEW_TOKENS: dict[InputsForm, int] = {"tgi": 100, "lmi": 30}

_BODY_RULE = FieldRule(neutral={}, without_effect=frozenset(), max_bytes={"inputs": None})
_PARAMETERS_RULE = FieldRule(
    neutral={
        "typical_p": (1,),
        "watermark": (False,),
        "grammar": NOTHING,
        "adapter_id": NOTHING,
        "num_beams": (1,),
        "length_penalty": (1,),
        "early_stopping": (False,),
        "spaces_between_special_tokens": (True,),
    },
    without_effect=frozenset(),
)


# With `do_sample` false, what asks for no sampling either: Hugging Face's own defaults among them.
_GREEDY_NEUTRAL: dict[str, tuple[float | None, ...]] = {
    "temperature": (None, 0, 1),
    "top_k": (None, 0, -1),
    "top_p": (None, 1),
    "min_p": (None, 0),
}


class GenerateBody(msgspec.Struct, kw_only=True):
    """The outer object; `inputs` and `parameters` are read by rules of their own."""

    inputs: msgspec.Raw
    parameters: dict[str, msgspec.Raw] = msgspec.field(default_factory=dict)
    stream: bool = False


class GenerateParameters(msgspec.Struct, kw_only=True):
    """The parameters that take effect."""

    max_new_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    do_sample: bool | None = None
    seed: int | None = None
    stop: list[str] = msgspec.field(default_factory=list)
    stop_sequences: list[str] = msgspec.field(default_factory=list)
    return_full_text: bool = False
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    min_p: float | None = None
    min_tokens: int = 0
    stop_token_ids: list[int] = msgspec.field(default_factory=list)
    ignore_eos_token: bool = False
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    details: bool = False
    decoder_input_details: bool = False
    top_n_tokens: int = 0
    best_of: int = 1
    truncate: int | None = None

    @property
    def is_sampling(self) -> bool:
        """Like TGI: greedy unless the request asks for sampling in some way."""
        asks = any(value is not None for value in (self.temperature, self.top_k, self.top_p))
        return (asks if self.do_sample is None else self.do_sample) and self.temperature != 0

    def check(self, is_stream: bool) -> None:
        """Raises InvalidRequest for a parameter that contradicts another one."""
        self._check_sampling()
        if self.truncate is not None and self.truncate < 1:
            raise InvalidRequest("'truncate' must be at least 1.", "truncate")
        if self.decoder_input_details and (is_stream or not self.details):
            raise InvalidRequest(
                "'decoder_input_details' needs 'details': true, and no stream.", "decoder_input_details"
            )
        if self.top_n_tokens and not (self.details or is_stream):
            raise InvalidRequest("'top_n_tokens' needs 'details': true, or a stream.", "top_n_tokens")
        if self.best_of != 1 and (is_stream or not self.is_sampling):
            raise InvalidRequest("'best_of' needs sampling, and no stream.", "best_of")

    def _check_sampling(self) -> None:
        if self.do_sample and self.temperature == 0:
            raise InvalidRequest("'temperature' of 0 contradicts 'do_sample': true.", "temperature")
        for name, neutral in _GREEDY_NEUTRAL.items():
            if self.do_sample is False and getattr(self, name) not in neutral:
                raise InvalidRequest(f"'{name}' has no effect with 'do_sample': false; leave one of them out.", name)

    def params(self, is_stream: bool, form: InputsForm) -> SamplingParams:
        """The engine's parameters, with the log-probabilities that the answer shows or that tell the best of many."""
        check_max_tokens(self.max_new_tokens)
        needs_logprobs = is_stream or self.details or self.best_of > 1
        return SamplingParams(
            temperature=(1.0 if self.temperature is None else self.temperature) if self.is_sampling else 0.0,
            top_k=self.top_k or 0,
            top_p=1.0 if self.top_p is None else self.top_p,
            repetition_penalty=1.0 if self.repetition_penalty is None else self.repetition_penalty,
            min_p=self.min_p or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            seed=self.seed,
            n=self.best_of,
            max_tokens=_DEFAULT_MAX_NEW_TOKENS[form] if self.max_new_tokens is None else self.max_new_tokens,
            min_tokens=self.min_tokens,
            stop=(*self.stop, *self.stop_sequences),
            stop_token_ids=tuple(self.stop_token_ids),
            ignore_eos=self.ignore_eos_token,
            skip_special_tokens=self.skip_special_tokens,
            include_stop_str_in_output=self.include_stop_str_in_output,
            logprobs=self.top_n_tokens if needs_logprobs else None,
            prompt_logprobs=0 if self.decoder_input_details else None,
        )


@dataclasses.dataclass(frozen=True)
class Generate:
    """A checked request: one answer for each of the inputs. is_list: they came in a list."""

    inputs: list[str]
    is_list: bool
    parameters: GenerateParameters
    stream: bool


def read_generate(raw: RawBody, limits: PromptLimits) -> Generate:
    """The request of a body. Raises InvalidRequest or ContextLengthExceeded, naming the field."""
    body = read(raw, GenerateBody, _BODY_RULE)
    try:
        parameters = read(body.parameters, GenerateParameters, _PARAMETERS_RULE)
        parameters.check(body.stream)
    except InvalidRequest as error:
        where = f"parameters.{error.param}"
        raise InvalidRequest(error.message.replace(f"'{error.param}'", f"'{where}'"), where) from None
    inputs = read_texts(body.inputs, limits, "inputs")
    if body.stream and len(inputs) > 1:
        raise InvalidRequest("'inputs' must be one text where it is streamed.", "inputs")
    if len(inputs) * parameters.best_of > MAX_SEQUENCES:
        raise InvalidRequest(f"'inputs' times 'parameters.best_of' must be at most {MAX_SEQUENCES} texts.", "inputs")
    is_list = bytes(memoryview(body.inputs)[:1]) == b"["
    return Generate(inputs, is_list, parameters, body.stream)
