"""The messages between a web worker and the engine: msgspec structs, encoded with msgpack.

Worker → engine: `Generate`, `Abort`, `OpenSession`, `CloseSession`. Engine → worker: `EngineStatus`, `Outputs`,
`RequestFailed`, `SessionAnswer`. Every message is one msgpack map with a `type` field; framing is the transport's
business. Nothing is ever unpickled.

Must not know sockets or how a request is served.
"""

from typing import Literal

import msgspec

from engine.api.errors import ContextLengthExceeded, InvalidRequest
from engine.api.sampling_params import SamplingParams

FinishReason = Literal["stop", "length", "abort", "error"]
EngineState = Literal["starting", "ready", "draining", "failed"]
# Bounded, for so is the number of later requests that may pass one of a worse priority: nothing waits for ever.
MAX_PRIORITY = 1000


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker must know of the served model to validate, tokenise and answer.

    model_dir: directory with the tokenizer and the chat template.
    default_*: sampling defaults of generation_config.json, used where a request names none.
    """

    served_name: str
    model_dir: str
    created_s: int
    vocab_size: int
    max_model_len: int
    eos_token_ids: tuple[int, ...]
    default_temperature: float = 1.0
    default_top_k: int = 0
    default_top_p: float = 1.0


class GenerateRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt to continue.

    request_id: unique among the requests of one connection; chosen by the worker, never taken from a client.
    deadline: time.monotonic() after which the request ends with DeadlineExceeded. Both processes share the clock.
    bad_words_ids: the tokenisations of `params.bad_words`; the engine knows no text.
    priority: lower is served earlier; between -MAX_PRIORITY and MAX_PRIORITY.
    cache_salt: requests share cached prefixes only with requests of the same salt.
    session_id: the open session that the request is a turn of; empty for none. One that is not open: InvalidRequest.
    """

    request_id: int
    prompt_token_ids: list[int]
    params: SamplingParams
    deadline: float
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    priority: int = 0
    cache_salt: str = ""
    session_id: str = ""


class Generate(msgspec.Struct, frozen=True, tag="generate"):
    """Start this request."""

    request: GenerateRequest


class Abort(msgspec.Struct, frozen=True, tag="abort"):
    """Stop this request (or one sample of it, if `index` is given) and free its blocks; an unknown id is ignored."""

    request_id: int
    index: int | None = None


class OpenSession(msgspec.Struct, frozen=True, kw_only=True, tag="open_session"):
    """Open a session that ends after `lifetime_s` seconds; answered by a SessionAnswer, or RequestFailed."""

    request_id: int
    lifetime_s: float


class CloseSession(msgspec.Struct, frozen=True, kw_only=True, tag="close_session"):
    """Close a session; answered by a SessionAnswer, or by RequestFailed when it is not open."""

    request_id: int
    session_id: str


class SessionAnswer(msgspec.Struct, frozen=True, kw_only=True, tag="session"):
    """The session that was opened or closed. expires_s: Unix time at which it ends, or would have."""

    request_id: int
    session_id: str
    expires_s: float


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Token counts of one sequence so far.

    num_cached_tokens: tokens of the prompt whose K/V was there when the sequence was first admitted.
    """

    num_prompt_tokens: int
    num_output_tokens: int
    num_cached_tokens: int = 0


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Log-probabilities at one position, of the model's own distribution (before penalties and temperature).

    logprob, rank: of the token that stands there; rank 1 is the most likely. top_ids, top_logprobs: the most likely
    tokens, best first, as many as were asked for.
    """

    logprob: float
    rank: int
    top_ids: list[int]
    top_logprobs: list[float]


class RequestOutput(msgspec.Struct, frozen=True, omit_defaults=True):
    """New tokens of one sequence after one step, and how it ended if it did.

    index: which of the request's n sequences.
    stop_token_id: the id that ended the sequence, if one did; it is the last of the ids and not part of the text.
    logprobs: one entry per new token, where `params.logprobs` asks for it.
    prompt_logprobs: with the sequence's first output, where `params.prompt_logprobs` asks for it: one entry per token
        of the prompt but the first, which nothing predicts.
    usage: with the first output and with the last one.
    """

    request_id: int
    index: int
    new_token_ids: list[int]
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None
    usage: Usage | None = None


class Outputs(msgspec.Struct, frozen=True, tag="outputs"):
    """All outputs of one step for one worker."""

    outputs: list[RequestOutput]


class RequestFailed(msgspec.Struct, frozen=True, kw_only=True, tag="failed", omit_defaults=True):
    """The whole request, all its sequences, ended with an error. `code` is a ServingError's."""

    request_id: int
    code: str
    message: str
    param: str | None = None


class EngineStatus(msgspec.Struct, frozen=True, kw_only=True, tag="status"):
    """The engine's word on itself, stamped by the engine thread every second, idle or busy.

    stamp: time.monotonic() when the engine thread wrote it. A stamp older than the stall limit means that the engine is
    stopped or hung, whatever `state` says.
    stage: what is going on, for people ("loading weights").
    num_free_blocks: blocks that can be handed out; those that still hold a cached prefix are among them.
    max_num_seqs: how many sequences one step computes at most; 0 where the engine has not said.
    num_preemptions, num_prefix_query_tokens, num_prefix_hit_tokens: since the start. Tokens that were looked up in the
        prefix cache, and those of them that were found there; a preempted sequence looks its tokens up again.
    """

    state: EngineState
    stage: str
    stamp: float
    pid: int
    model: ModelInfo | None = None
    max_num_seqs: int = 0
    num_running: int = 0
    num_waiting: int = 0
    num_free_blocks: int = 0
    num_blocks: int = 0
    num_preemptions: int = 0
    num_prefix_query_tokens: int = 0
    num_prefix_hit_tokens: int = 0


WorkerMessage = Generate | Abort | OpenSession | CloseSession
EngineMessage = EngineStatus | Outputs | RequestFailed | SessionAnswer

_encoder = msgspec.msgpack.Encoder()
_worker_decoder: msgspec.msgpack.Decoder[WorkerMessage] = msgspec.msgpack.Decoder(WorkerMessage)
_engine_decoder: msgspec.msgpack.Decoder[EngineMessage] = msgspec.msgpack.Decoder(EngineMessage)


def encode_message(message: WorkerMessage | EngineMessage) -> bytes:
    """One message as msgpack bytes."""
    return _encoder.encode(message)


def decode_worker_message(data: bytes | bytearray | memoryview) -> WorkerMessage:
    """A message that a worker sent. Raises msgspec.DecodeError or msgspec.ValidationError on anything else."""
    return _worker_decoder.decode(data)


def decode_engine_message(data: bytes | bytearray | memoryview) -> EngineMessage:
    """A message that the engine sent. Raises msgspec.DecodeError or msgspec.ValidationError on anything else."""
    return _engine_decoder.decode(data)


def check_request(prompt_token_ids: list[int], params: SamplingParams, model: ModelInfo, *, priority: int = 0) -> None:
    """Refuse a request that the model cannot serve: the one check that the web tier, `LLM` and the engine share.

    Raises InvalidRequest for an empty prompt, a token id outside the vocabulary or a priority out of range,
    ContextLengthExceeded where prompt and output do not fit into max_model_len. The cache holds at least one sequence
    of max_model_len, so what passes can run.
    """
    if not -MAX_PRIORITY <= priority <= MAX_PRIORITY:
        raise InvalidRequest(f"'priority' must be between {-MAX_PRIORITY} and {MAX_PRIORITY}.", "priority")
    num_prompt_tokens = len(prompt_token_ids)
    if num_prompt_tokens == 0:
        raise InvalidRequest("The prompt is empty: it must have at least one token.", "prompt")
    if num_prompt_tokens >= model.max_model_len:
        raise ContextLengthExceeded(
            f"The prompt has {num_prompt_tokens} tokens, but this model's maximum context length is "
            f"{model.max_model_len} tokens, of which at least one must be left for the output.",
            "prompt",
        )
    if params.max_tokens is not None and num_prompt_tokens + params.max_tokens > model.max_model_len:
        raise ContextLengthExceeded(
            f"This model's maximum context length is {model.max_model_len} tokens; the prompt has {num_prompt_tokens} "
            f"and 'max_tokens' asks for {params.max_tokens} more.",
            "max_tokens",
        )
    _check_ids(prompt_token_ids, "prompt", model.vocab_size)
    for name, ids in (
        ("stop_token_ids", params.stop_token_ids),
        ("allowed_token_ids", params.allowed_token_ids or ()),
        ("logit_bias", tuple(params.logit_bias)),
    ):
        if ids:
            _check_ids(ids, name, model.vocab_size)


def _check_ids(ids: list[int] | tuple[int, ...], param: str, vocab_size: int) -> None:
    if min(ids) < 0 or max(ids) >= vocab_size:
        raise InvalidRequest(f"'{param}' holds a token id outside of 0 to {vocab_size - 1}.", param)
