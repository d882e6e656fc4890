"""What every generating route does: read the body, start the run, collect its texts.

Knows Flask's request and what the OpenAI schemas share. Must not know any response format.
"""

import dataclasses
import functools
import re
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

from flask import Response, g, request
from gevent.event import Event

from container.config import ServerConfig
from container.engine_client import Engine, RequestOptions
from container.engine_generation import MAX_RUNNING_SEQUENCES
from container.native_thread import in_thread
from container.request_body import JSON_BODY, read_body
from container.responses import SERVER_SENT_EVENTS, EventStream, StreamFormat, event_stream_response
from container.schema.body import split
from container.schema.fields import RawBody
from container.schema.sampling import SamplingFields
from container.served_model import ServedModel
from container.text_run import Job, TextRun
from engine.api import DeadlineExceeded, InvalidRequest, SamplingParams, TokenLogprobs
from engine.text import TextDelta, bad_words_ids

P = ParamSpec("P")
PreparedT = TypeVar("PreparedT")

# Below this many bytes validating, rendering and encoding take a few milliseconds; above, a native thread keeps the
# worker responsive.
_MAX_INLINE_BYTES = 20_000
# Some of a batch wait in the engine, so that none of its places is ever free; the rest of its queue is for others.
WAITING_PART = 4
# The same for log-probabilities in an answer.
_MAX_INLINE_LOGPROBS = 5_000
# Tokens of a sequence at a time, where nobody waits for each: waking up costs as much as all else done for a token.
_NUM_GATHERED_TOKENS = 32


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
class Call:
    """What a request brings besides the fields of its body.

    deadline: time.monotonic() at which it ends.
    socket: of the client, to see it leave; None where nobody watches, or somebody else does.
    session_id: the open session that it is a turn of, or empty.
    stream_format: of a streamed answer.
    is_batched: it is one of a batch, and nobody sees its text before its end.
    """

    request_id: str
    deadline: float
    socket: Any | None = None
    session_id: str = ""
    stream_format: StreamFormat = SERVER_SENT_EVENTS
    is_batched: bool = False


class BatchPlaces:
    """How many sequences of all of a worker's batches are with the engine at a time; first come, first served."""

    def __init__(self) -> None:
        self._num_taken = 0
        self._num_places = 0
        self._waiting: deque[tuple[int, Event]] = deque()

    def take(self, num_wanted: int, num_places: int, deadline: float) -> int:
        """Wait until so many of the `num_places` are free, or all where more are wanted; how many were taken.

        Raises DeadlineExceeded when they are not by `deadline` (monotonic).
        """
        self._num_places = num_places
        num = min(num_wanted, num_places)
        place = (num, Event())
        self._waiting.append(place)
        self._hand_out()
        try:
            if not place[1].wait(max(0.0, deadline - time.monotonic())):
                raise DeadlineExceeded("The record found no room before the request's deadline.")
        except BaseException:
            if place[1].is_set():
                self.give_back(num)
            else:
                self._waiting.remove(place)
                self._hand_out()  # it may have stood before smaller ones
            raise
        return num

    def give_back(self, num: int) -> None:
        """They are free again."""
        self._num_taken -= num
        self._hand_out()

    def _hand_out(self) -> None:
        while self._waiting and self._num_taken + self._waiting[0][0] <= self._num_places:
            num, event = self._waiting.popleft()
            self._num_taken += num
            event.set()


@dataclasses.dataclass(frozen=True)
class Serving:
    """The engine and the limits, as the routes use them. call: of the request; None where there is none yet."""

    engine: Engine
    config: ServerConfig
    call: Call | None = None
    batch_places: BatchPlaces = dataclasses.field(default_factory=BatchPlaces)

    def for_request(self) -> "Serving":
        """The same for Flask's current request."""
        return dataclasses.replace(self, call=Call(g.request_id, g.deadline, request.environ.get("gunicorn.socket")))

    def with_call(self, **changes: Any) -> "Serving":
        """The same with these fields of the call."""
        return dataclasses.replace(self, call=dataclasses.replace(self._call, **changes))

    def body(self) -> RawBody:
        """The fields of the request's body. Raises a RequestError: see `read_body`."""
        body = self.raw_body(JSON_BODY)
        if not body or body.isspace():
            raise InvalidRequest("The request body is empty; it must be a JSON object.")
        return split(body)

    def raw_body(self, types: re.Pattern[str]) -> bytes:
        """The body of Flask's current request, where its media type is one of `types`. Raises a RequestError."""
        return read_body(request, types, self.config.max_body_mb * 2**20, self._call.deadline)

    def start(self, model: ServedModel, job: Job) -> TextRun:
        """Start generating for the request; the caller must `close` the run. One of a batch waits for its places."""
        call = self._call
        # A stop string ends its text, and the engine's work on it, at once.
        num_gathered = _NUM_GATHERED_TOKENS if call.is_batched and not job.params.stop else 1
        options = dataclasses.replace(job.options, session_id=call.session_id, num_gathered_tokens=num_gathered)
        job = dataclasses.replace(job, options=options)
        run = TextRun(self.engine, model, job)
        if call.is_batched:
            num_seqs = self.engine.max_num_seqs()
            num_places = num_seqs + max(2, num_seqs // WAITING_PART)
            num = self.batch_places.take(min(run.num_choices, MAX_RUNNING_SEQUENCES), num_places, call.deadline)
            run.on_close = functools.partial(self.batch_places.give_back, num)
        try:
            run.start(call.deadline, call.socket)
        except BaseException:
            run.close()
            raise
        return run

    def counts_tokens(self, fields: SamplingFields) -> bool:
        """Whether a stream ends with a chunk of token counts."""
        return fields.include_usage or self.config.always_include_usage

    def stream(self, run: TextRun, parts: Callable[[TextRun], Iterator[Any]]) -> Response:
        """A streaming response of `parts(run)`, JSON values, which closes the run however it ends."""
        call = self._call
        return event_stream_response(EventStream(parts(run), run.close, call.request_id, call.stream_format))

    @property
    def _call(self) -> Call:
        assert self.call is not None, "for_request comes first"
        return self.call


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
