"""What every generating route does: read the body, start the run, collect its texts.

Knows Flask's request. Must not know any schema or response format.
"""

import dataclasses
import secrets
import time
from collections.abc import Callable, Iterator

from flask import Response, g, request

from container.config import ServerConfig
from container.engine_client import Engine
from container.request_body import read_json_fields
from container.responses import EventStream, event_stream_response
from container.schema.fields import RawBody
from container.served_model import ServedModel
from container.text_run import TextRun
from engine.api import SamplingParams


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
        return read_json_fields(request, self.config.max_body_mb * 2**20)

    def start(self, model: ServedModel, prompts: list[list[int]], params: SamplingParams) -> TextRun:
        """Start generating for the current request; the caller must `close` the run."""
        run = TextRun(self.engine, model, prompts, params)
        run.start(self.config.request_timeout_s, request.environ.get("gunicorn.socket"))
        return run


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
