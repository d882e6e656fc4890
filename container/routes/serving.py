"""What every generating route does: read the body, start the run, collect its texts.

Knows Flask's request. Must not know any schema or response format.
"""

import dataclasses
import secrets
import time
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

from flask import Response, g, request

from container.config import ServerConfig
from container.engine_client import Engine
from container.native_thread import in_thread
from container.request_body import read_json_fields
from container.responses import EventStream, event_stream_response
from container.schema.fields import RawBody
from container.served_model import ServedModel
from container.text_run import TextRun
from engine.api import SamplingParams

P = ParamSpec("P")
PreparedT = TypeVar("PreparedT")

# Below this many bytes validating, rendering and encoding take a few milliseconds; above, a native thread keeps the
# worker responsive.
_MAX_INLINE_BYTES = 20_000


@dataclasses.dataclass(frozen=True)
class Choice:
    """One finished text."""

    text: str
    finish_reason: str


@dataclasses.dataclass(frozen=True)
class Serving:
    """The engine and the limits, as the routes use them."""

    engine: Engine
    config: ServerConfig

    def body(self) -> RawBody:
        """The fields of the current request's body."""
        return read_json_fields(request, self.config.max_body_mb * 2**20, g.deadline)

    def start(self, model: ServedModel, prompts: list[list[int]], params: SamplingParams) -> TextRun:
        """Start generating for the current request; the caller must `close` the run."""
        run = TextRun(self.engine, model, prompts, params)
        run.start(g.deadline, request.environ.get("gunicorn.socket"))
        return run


def prepare(raw: RawBody, function: Callable[P, PreparedT], *args: P.args, **kwargs: P.kwargs) -> PreparedT:
    """The function's result: what becomes of the body, beside the worker's other requests if that may take long."""
    is_large = sum(len(memoryview(value)) for value in raw.values()) > _MAX_INLINE_BYTES
    return in_thread(function, *args, **kwargs) if is_large else function(*args, **kwargs)


def collect(run: TextRun) -> list[Choice]:
    """All texts of a run, when all have finished; the run is closed."""
    texts: list[list[str]] = [[] for _ in range(run.num_choices)]
    reasons = [""] * run.num_choices
    try:
        for choice, delta in run:
            texts[choice].append(delta.text)
            reasons[choice] = delta.finish_reason or reasons[choice]
    finally:
        run.close()
    return [Choice("".join(pieces), reason) for pieces, reason in zip(texts, reasons, strict=True)]


def stream(run: TextRun, events: Callable[[TextRun], Iterator[bytes]]) -> Response:
    """A streaming response of `events(run)`, which closes the run however it ends."""
    return event_stream_response(EventStream(events(run), run.close, g.request_id))


def new_id(prefix: str) -> str:
    """An id for a response, ours and never the client's."""
    return f"{prefix}-{secrets.token_hex(16)}"


def created_s() -> int:
    """Now, as OpenAI's `created` counts it."""
    return int(time.time())


def usage(run: TextRun) -> dict[str, int]:
    """OpenAI's token counts of the run so far."""
    prompt, output = run.num_prompt_tokens, run.num_output_tokens
    return {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}
