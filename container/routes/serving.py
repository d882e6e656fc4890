"""What every generating route does: read the body, start the run, collect its texts.

Knows Flask's request and what the OpenAI schemas share. Must not know any response format.
"""

import dataclasses
import secrets
import time
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

from flask import Response, g, request

from container.config import ServerConfig
from container.engine_client import Engine, RequestOptions
from container.native_thread import in_thread
from container.request_body import read_json_fields
from container.responses import EventStream, event_stream_response
from container.schema.fields import RawBody
from container.schema.sampling import SamplingFields
from container.served_model import ServedModel
from container.text_run import Job, TextRun
from engine.api import SamplingParams, TokenLogprobs
from engine.text import TextDelta, bad_words_ids

P = ParamSpec("P")
PreparedT = TypeVar("PreparedT")

# Below this many bytes validating, rendering and encoding take a few milliseconds; above, a native thread keeps the
# worker responsive.
_MAX_INLINE_BYTES = 20_000
# The same for log-probabilities in an answer.
_MAX_INLINE_LOGPROBS = 5_000


@dataclasses.dataclass
class Choice:
    """One text with its tokens: a finished one, or what a client has not been sent yet."""

    pieces: list[str] = dataclasses.field(default_factory=list)
    token_ids: list[int] = dataclasses.field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs] | None = None

    def add(self, delta: TextDelta) -> None:
        """Take what comes next."""
        if delta.text:
            self.pieces.append(delta.text)
        self.token_ids += delta.token_ids
        self.finish_reason, self.stop_reason = delta.finish_reason, delta.stop_reason
        if delta.logprobs is not None:
            if self.logprobs is None:
                self.logprobs = []
            self.logprobs += delta.logprobs
        if delta.prompt_logprobs is not None:
            self.prompt_logprobs = delta.prompt_logprobs

    @property
    def text(self) -> str:
        """All text so far."""
        return "".join(self.pieces)

    @property
    def is_due(self) -> bool:
        """Whether a client should see it now: what has no text yet waits for the text that it belongs to."""
        return bool(self.pieces) or self.finish_reason is not None

    @property
    def mean_logprob(self) -> float:
        """Mean log-probability per token, by which the best of several is told."""
        if not self.logprobs:
            return 0.0
        return sum(entry.logprob for entry in self.logprobs) / len(self.logprobs)


@dataclasses.dataclass(frozen=True)
class Serving:
    """The engine and the limits, as the routes use them."""

    engine: Engine
    config: ServerConfig

    def body(self) -> RawBody:
        """The fields of the current request's body."""
        return read_json_fields(request, self.config.max_body_mb * 2**20, g.deadline)

    def start(self, model: ServedModel, job: Job) -> TextRun:
        """Start generating for the current request; the caller must `close` the run."""
        run = TextRun(self.engine, model, job)
        run.start(g.deadline, request.environ.get("gunicorn.socket"))
        return run


def prepare(raw: RawBody, function: Callable[P, PreparedT], *args: P.args, **kwargs: P.kwargs) -> PreparedT:
    """The function's result: what becomes of the body, beside the worker's other requests if that may take long."""
    is_large = sum(len(memoryview(value)) for value in raw.values()) > _MAX_INLINE_BYTES
    return in_thread(function, *args, **kwargs) if is_large else function(*args, **kwargs)


def request_options(model: ServedModel, params: SamplingParams, fields: SamplingFields | None = None) -> RequestOptions:
    """What the engine is told besides the parameters; `fields` are those of the OpenAI routes."""
    return RequestOptions(
        priority=0 if fields is None else fields.priority,
        cache_salt="" if fields is None else fields.cache_salt or "",
        bad_words_ids=bad_words_ids(model.tokenizer, params.bad_words, model.info.vocab_size),
    )


def collect(run: TextRun) -> list[Choice]:
    """All texts of a run, when all have finished; the run is closed."""
    choices = [Choice() for _ in range(run.num_choices)]
    try:
        for index, delta in run:
            choices[index].add(delta)
    finally:
        run.close()
    return choices


def best(choices: list[Choice], num_generated: int, num_wanted: int) -> list[Choice]:
    """Of each prompt's `num_generated` choices the likeliest ones, best first."""
    groups = (choices[i : i + num_generated] for i in range(0, len(choices), num_generated))
    return [
        choice
        for group in groups
        for choice in sorted(group, key=lambda choice: choice.mean_logprob, reverse=True)[:num_wanted]
    ]


def written(run: TextRun, function: Callable[[], Response]) -> Response:
    """The function's result: the run's answer, beside the worker's other requests if writing it may take long."""
    params = run.job.params
    num_entries = 0
    if params.logprobs is not None:
        num_entries += run.num_output_tokens * (1 + params.logprobs)
    if params.prompt_logprobs is not None:
        num_entries += run.num_prompt_tokens * params.n * (1 + params.prompt_logprobs)
    return in_thread(function) if num_entries > _MAX_INLINE_LOGPROBS else function()


def stream(run: TextRun, events: Callable[[TextRun], Iterator[bytes]]) -> Response:
    """A streaming response of `events(run)`, which closes the run however it ends."""
    return event_stream_response(EventStream(events(run), run.close, g.request_id))


def new_id(prefix: str) -> str:
    """An id for a response, ours and never the client's."""
    return f"{prefix}-{secrets.token_hex(16)}"


def created_s() -> int:
    """Now, as OpenAI's `created` counts it."""
    return int(time.time())


def usage(run: TextRun, num_output_tokens: int | None = None) -> dict[str, Any]:
    """OpenAI's token counts of the run so far; `num_output_tokens` where not all that was generated is an output."""
    prompt = run.num_prompt_tokens
    output = run.num_output_tokens if num_output_tokens is None else num_output_tokens
    return {
        "prompt_tokens": prompt,
        "completion_tokens": output,
        "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": run.num_cached_tokens},
    }
