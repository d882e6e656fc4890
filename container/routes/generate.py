"""TGI's {"inputs", "parameters"} on /invocations, whole or streamed.

Knows TGI's response format. Must not know sampling or sockets.
"""

from collections.abc import Iterator
from typing import Any

from flask import Response

from container.responses import event, json_response
from container.routes.serving import Serving, collect, prepare, stream
from container.schema.fields import RawBody, named
from container.schema.generate import NAMES, GenerateBody, GenerateParameters, read_generate
from container.served_model import ServedModel
from container.text_run import TextRun
from engine.api import SamplingParams


def answer(serving: Serving, raw: RawBody) -> Response:
    """The response to a TGI request. Raises a ServingError."""
    model = serving.engine.model()
    body, parameters, params, token_ids = prepare(raw, _prepare, model, raw)
    with named(NAMES):
        run = serving.start(model, [token_ids], params)
    prefix = body.inputs if parameters.return_full_text else ""
    if body.stream:
        return stream(run, lambda run: _events(run, model, prefix))
    return json_response([{"generated_text": prefix + choice.text} for choice in collect(run)])


def _prepare(model: ServedModel, raw: RawBody) -> tuple[GenerateBody, GenerateParameters, SamplingParams, list[int]]:
    body, parameters = read_generate(raw, model.limits)
    with named(NAMES):
        params = parameters.params()
        return body, parameters, params, model.encode(body.inputs, "prompt", add_special_tokens=True)


def _events(run: TextRun, model: ServedModel, prefix: str) -> Iterator[bytes]:
    # One event per token, as TGI sends; text that several tokens made together stands with the last of them.
    pieces: list[str] = []
    index = 0
    special_ids = model.tokenizer.special_ids
    for _, delta in run:
        pieces.append(delta.text)
        is_last = delta.finish_reason is not None
        for i, token_id in enumerate(delta.token_ids):
            index += 1
            ends_delta = i == len(delta.token_ids) - 1
            token: dict[str, Any] = {
                "id": token_id,
                "text": delta.text if ends_delta else "",
                "logprob": None,
                "special": token_id in special_ids,
            }
            whole = prefix + "".join(pieces) if is_last and ends_delta else None
            yield event({"index": index, "token": token, "generated_text": whole, "details": None})
