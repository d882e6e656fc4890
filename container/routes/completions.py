"""/v1/completions: OpenAI's text completion, whole or streamed, for one prompt or many.

Knows the response format. Must not know sampling or sockets.
"""

from collections.abc import Iterator
from typing import Any

from flask import Response

from container.responses import DONE, event, json_response
from container.routes.serving import Serving, collect, created_s, new_id, prepare, stream, usage
from container.schema.completions import CompletionRequest, read_completion
from container.schema.fields import RawBody
from container.schema.sampling import check_model_name
from container.served_model import ServedModel
from container.text_run import TextRun
from engine.api import SamplingParams


def answer(serving: Serving, raw: RawBody) -> Response:
    """The response to a completion request. Raises a ServingError."""
    model = serving.engine.model()
    completion, params, prompts = prepare(raw, _prepare, model, raw)
    run = serving.start(model, prompts, params)
    if completion.stream:
        return stream(run, lambda run: _events(run, model.info.served_name, completion.include_usage))
    return json_response(_completion(run, model.info.served_name))


def _prepare(model: ServedModel, raw: RawBody) -> tuple[CompletionRequest, SamplingParams, list[list[int]]]:
    completion, prompts = read_completion(raw, model.limits)
    check_model_name(completion.model, model.info)
    params = completion.params(model.info)
    return (
        completion,
        params,
        [
            model.encode(prompt, "prompt", add_special_tokens=True) if isinstance(prompt, str) else prompt
            for prompt in prompts
        ],
    )


def _completion(run: TextRun, model_name: str) -> dict[str, Any]:
    choices = [
        {"index": i, "text": choice.text, "logprobs": None, "finish_reason": choice.finish_reason}
        for i, choice in enumerate(collect(run))
    ]
    return {
        "id": new_id("cmpl"),
        "object": "text_completion",
        "created": created_s(),
        "model": model_name,
        "choices": choices,
        "usage": usage(run),
    }


def _events(run: TextRun, model_name: str, include_usage: bool) -> Iterator[bytes]:
    head = {"id": new_id("cmpl"), "object": "text_completion", "created": created_s(), "model": model_name}
    tail = {"usage": None} if include_usage else {}
    for index, delta in run:
        if delta.text or delta.finish_reason is not None:
            choice = {"index": index, "text": delta.text, "logprobs": None, "finish_reason": delta.finish_reason}
            yield event({**head, "choices": [choice], **tail})
    if include_usage:
        yield event({**head, "choices": [], "usage": usage(run)})
    yield DONE
