"""/v1/chat/completions: OpenAI's chat, whole or streamed.

Knows the response format. Must not know sampling or sockets.
"""

from collections.abc import Iterator
from typing import Any

from flask import Response

from container.responses import DONE, json_response
from container.routes.logprobs import chat_logprobs, prompt_logprobs
from container.routes.serving import (
    Choice,
    Serving,
    collect,
    created_s,
    new_id,
    prepare,
    request_options,
    usage,
    written,
)
from container.schema.chat import ChatRequest, read_chat
from container.schema.fields import RawBody, named
from container.schema.sampling import check_model_name
from container.served_model import ServedModel
from container.text_run import Job, TextRun


def answer(serving: Serving, raw: RawBody) -> Response:
    """The response to a chat request. Raises a ServingError."""
    model = serving.engine.model()
    chat, job = prepare(raw, _prepare, model, raw)
    with named(chat.names()):
        run = serving.start(model, job)
    if chat.stream:
        return serving.stream(run, lambda run: _events(run, model, chat, serving.counts_tokens(chat)))
    choices = collect(run)
    return written(run, lambda: json_response(_completion(run, model, chat, choices)))


def _prepare(model: ServedModel, raw: RawBody) -> tuple[ChatRequest, Job]:
    chat = read_chat(raw, model.limits)
    check_model_name(chat.model, model.info)
    with named(chat.names()):
        params = chat.params(model.info)
        token_ids = model.encode(_render(model, chat), "prompt", add_special_tokens=False)
        return chat, Job([token_ids], params, request_options(model, params, chat))


def _render(model: ServedModel, chat: ChatRequest) -> str:
    return model.chat_template.render(
        chat.template_messages(),
        tools=chat.template_tools(),
        add_generation_prompt=chat.add_generation_prompt,
        kwargs=chat.chat_template_kwargs,
    )


def _completion(run: TextRun, model: ServedModel, chat: ChatRequest, choices: list[Choice]) -> dict[str, Any]:
    body = {
        "id": new_id("chatcmpl"),
        "object": "chat.completion",
        "created": created_s(),
        "model": model.info.served_name,
        "choices": [
            {
                "index": i,
                "message": {"role": "assistant", "content": choice.text, "refusal": None},
                "logprobs": chat_logprobs(model.tokenizer, choice.token_ids, choice.logprobs, chat.top_logprobs),
                "finish_reason": choice.finish_reason,
            }
            for i, choice in enumerate(choices)
        ],
        "usage": usage(run),
    }
    if chat.prompt_logprobs is not None:
        # Where vLLM has it: a chat has one prompt.
        ids, entries = run.job.prompts[0], choices[0].prompt_logprobs
        body["prompt_logprobs"] = prompt_logprobs(model.tokenizer, ids, entries, chat.prompt_logprobs)
    return body


def _events(run: TextRun, model: ServedModel, chat: ChatRequest, with_usage: bool) -> Iterator[Any]:
    head = {
        "id": new_id("chatcmpl"),
        "object": "chat.completion.chunk",
        "created": created_s(),
        "model": model.info.served_name,
    }
    # OpenAI: with include_usage every chunk has the field, null but in the last.
    tail = {"usage": None} if with_usage else {}

    def chunk(
        index: int, delta: dict[str, Any], part: Choice | None = None, reason: str | None = None
    ) -> dict[str, Any]:
        logprobs = part and chat_logprobs(model.tokenizer, part.token_ids, part.logprobs, chat.top_logprobs)
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return {**head, "choices": [choice], **tail}

    # What has not been sent yet; None before the first chunk.
    parts: list[Choice | None] = [None] * run.num_choices
    for index, delta in run:
        part = parts[index]
        if part is None:
            part = parts[index] = Choice()
            yield chunk(index, {"role": "assistant", "content": ""})
        part.add(delta)
        if not part.is_due:
            continue
        parts[index] = Choice()
        if part.text:
            yield chunk(index, {"content": part.text}, part)
        if part.finish_reason is not None:
            # Tokens after the last text, the one that ended it first of all, have no other chunk to go with.
            rest = part if part.logprobs and not part.text else None
            yield chunk(index, {}, rest, part.finish_reason)
    if with_usage:
        yield {**head, "choices": [], "usage": usage(run)}
    yield DONE
