"""/v1/completions: OpenAI's text completion, whole or streamed, for one prompt or many.

Knows the response format. Must not know sampling or sockets.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from flask import Response

from container.responses import DONE, json_response
from container.routes.logprobs import CompletionLogprobs, prompt_logprobs
from container.routes.serving import (
    Choice,
    Serving,
    best,
    collect,
    created_s,
    new_id,
    prepare,
    request_options,
    usage,
    written,
)
from container.schema.completions import CompletionRequest, read_completion
from container.schema.fields import RawBody, named
from container.schema.sampling import check_model_name
from container.served_model import ServedModel
from container.text_run import Job, TextRun
from engine.api import check_request
from engine.text import Detokenizer


def answer(serving: Serving, raw: RawBody) -> Response:
    """The response to a completion request. Raises a ServingError."""
    model = serving.engine.model()
    completion, job, texts = prepare(raw, _prepare, model, raw)
    with named(completion.names()):
        run = serving.start(model, job)

    def writers() -> list[_Writer]:
        n = completion.n
        return [_Writer(model, completion, job.prompts[i // n], texts[i // n]) for i in range(len(job.prompts) * n)]

    if completion.stream:
        with_usage = serving.counts_tokens(completion)
        return serving.stream(run, lambda run: _events(run, model, completion, writers(), with_usage))
    choices = collect(run)
    if job.params.n > completion.n:
        choices = best(choices, job.params.n, completion.n)
    with_writers = zip(writers(), choices, strict=True)
    return written(run, lambda: json_response(_completion(run, model, completion, with_writers)))


def _prepare(model: ServedModel, raw: RawBody) -> tuple[CompletionRequest, Job, list[str]]:
    """The request, its job, and the text of each prompt (empty where it is not echoed)."""
    completion, prompts = read_completion(raw, model.limits)
    check_model_name(completion.model, model.info)
    params = completion.params(model.info)
    token_ids = [
        model.encode(prompt, "prompt", add_special_tokens=True) if isinstance(prompt, str) else prompt
        for prompt in prompts
    ]
    texts = [""] * len(prompts)
    if completion.echo:
        for ids in token_ids:
            # Before they are decoded.
            check_request(ids, params, model.info)
        skip = completion.skip_special_tokens
        texts = [
            prompt if isinstance(prompt, str) else model.tokenizer.decode(prompt, skip_special_tokens=skip)
            for prompt in prompts
        ]
    return completion, Job(token_ids, params, request_options(model, params, completion)), texts


class _Writer:
    """One choice in the response's form, whole or part by part; the first part begins with the echoed prompt."""

    def __init__(self, model: ServedModel, completion: CompletionRequest, prompt: list[int], text: str) -> None:
        self._model = model
        self._completion = completion
        self._prompt = prompt
        self._prompt_text = text
        self._has_begun = False
        self._detokenizer = Detokenizer(model.tokenizer, skip_special_tokens=completion.skip_special_tokens)
        num_logprobs = completion.num_logprobs
        self._logprobs = None if num_logprobs is None else CompletionLogprobs(model.tokenizer, num_logprobs)

    def write(self, index: int, part: Choice) -> dict[str, Any]:
        """What `part` adds."""
        is_shown = not self._completion.generates_nothing
        text = part.text if is_shown else ""
        if self._completion.echo and not self._has_begun:
            text = self._prompt_text + text
            if self._logprobs is not None:
                self._logprobs.add_prompt(self._prompt, part.prompt_logprobs, self._prompt_text)
        self._has_begun = True
        if self._logprobs is not None and part.logprobs is not None and is_shown:
            self._logprobs.add(part.token_ids, part.logprobs, self._detokenizer)
        logprobs = None if self._logprobs is None else self._logprobs.take()
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": part.finish_reason}

    def write_whole(self, index: int, choice: Choice) -> dict[str, Any]:
        """The whole choice, with vLLM's `prompt_logprobs` where they were asked for."""
        body = self.write(index, choice)
        num_top = self._completion.prompt_logprobs
        if num_top is not None:
            entries = choice.prompt_logprobs
            body["prompt_logprobs"] = prompt_logprobs(self._model.tokenizer, self._prompt, entries, num_top)
        return body


def _completion(
    run: TextRun, model: ServedModel, completion: CompletionRequest, choices: Iterable[tuple[_Writer, Choice]]
) -> dict[str, Any]:
    return {
        "id": new_id("cmpl"),
        "object": "text_completion",
        "created": created_s(),
        "model": model.info.served_name,
        "choices": [writer.write_whole(i, choice) for i, (writer, choice) in enumerate(choices)],
        "usage": _usage(run, completion),
    }


def _events(
    run: TextRun, model: ServedModel, completion: CompletionRequest, writers: list[_Writer], with_usage: bool
) -> Iterator[Any]:
    head = {
        "id": new_id("cmpl"),
        "object": "text_completion",
        "created": created_s(),
        "model": model.info.served_name,
    }
    tail = {"usage": None} if with_usage else {}
    parts = [Choice() for _ in writers]
    for index, delta in run:
        part = parts[index]
        part.add(delta)
        if part.is_due:
            parts[index] = Choice()
            yield {**head, "choices": [writers[index].write(index, part)], **tail}
    if with_usage:
        yield {**head, "choices": [], "usage": _usage(run, completion)}
    yield DONE


def _usage(run: TextRun, completion: CompletionRequest) -> dict[str, Any]:
    return usage(run, num_output_tokens=0 if completion.generates_nothing else None)
