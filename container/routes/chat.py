"""/v1/chat/completions: OpenAI's chat, whole or streamed.

Knows the response format. Must not know sampling or sockets.
"""

from collections.abc import Iterator
from typing import Any

from flask import Response

from container.responses import DONE, event, json_response
from container.routes.serving import Serving, collect, created_s, new_id, prepare, stream, usage
from container.schema.chat import ChatRequest, read_chat
from container.schema.fields import RawBody, named
from container.schema.sampling import check_model_name
from container.served_model import ServedModel
from container.text_run import TextRun
from engine.api import SamplingParams


def answer(serving: Serving, raw: RawBody) -> Response:
    """The response to a chat request. Raises a ServingError."""
    model = serving.engine.model()
    chat, params, token_ids = prepare(raw, _prepare, model, raw)
    with named(chat.names()):
        run = serving.start(model, [token_ids], params)
    if chat.stream:
        return stream(run, lambda run: _events(run, model.info.served_name, chat.include_usage))
    return json_response(_completion(run, model.info.served_name))


def _prepare(model: ServedModel, raw: RawBody) -> tuple[ChatRequest, SamplingParams, list[int]]:
    chat = read_chat(raw, model.limits)
    check_model_name(chat.model, model.info)
    with named(chat.names()):
        params = chat.params(model.info)
        return chat, params, model.encode(_render(model, chat), "prompt", add_special_tokens=False)


def _render(model: ServedModel, chat: ChatRequest) -> str:
    return model.chat_template.render(
        chat.template_messages(),
        tools=chat.template_tools(),
        add_generation_prompt=chat.add_generation_prompt,
        kwargs=chat.chat_template_kwargs,
    )


def _completion(run: TextRun, model_name: str) -> dict[str, Any]:
    choices = [
        {
            "index": i,
            "message": {"role": "assistant", "content": choice.text, "refusal": None},
            "logprobs": None,
            "finish_reason": choice.finish_reason,
        }
        for i, choice in enumerate(collect(run))
    ]
    return {
        "id": new_id("chatcmpl"),
        "object": "chat.completion",
        "created": created_s(),
        "model": model_name,
        "choices": choices,
        "usage": usage(run),
    }


def _events(run: TextRun, model_name: str, include_usage: bool) -> Iterator[bytes]:
    head = {
        "id": new_id("chatcmpl"),
        "object": "chat.completion.chunk",
        "created": created_s(),
        "model": model_name,
    }
    # OpenAI: with include_usage every chunk has the field, null but in the last.
    tail = {"usage": None} if include_usage else {}

    def chunk(index: int, delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return event({**head, "choices": [choice], **tail})

    has_started = [False] * run.num_choices
    for index, delta in run:
        if not has_started[index]:
            has_started[index] = True
            yield chunk(index, {"role": "assistant", "content": ""})
        if delta.text:
            yield chunk(index, {"content": delta.text})
        if delta.finish_reason is not None:
            yield chunk(index, {}, delta.finish_reason)
    if include_usage:
        yield event({**head, "choices": [], "usage": usage(run)})
    yield DONE
