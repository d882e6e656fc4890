"""TGI's {"inputs", "parameters"} on /invocations, whole or streamed.

Knows TGI's response format, and where LMI's is another: the whole answer to one text is an object, not a list of one.
Must not know sampling or sockets.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

from flask import Response

from container.config import InputsForm
from container.responses import json_response
from container.routes.logprobs import finite, tgi_token, tgi_top_tokens
from container.routes.serving import Choice, Serving, best, collect, prepare, request_options, written
from container.schema.fields import RawBody, named
from container.schema.generate import NAMES, Generate, GenerateParameters, read_generate
from container.served_model import ServedModel
from container.text_run import Job, TextRun
from engine.text import Detokenizer, TextDelta


def answer(serving: Serving, raw: RawBody) -> Response:
    """The response to a TGI request. Raises a ServingError."""
    model = serving.engine.model()
    form = serving.config.inputs_form
    generate, job = prepare(raw, _prepare, model, raw, form)
    parameters = generate.parameters
    with named(NAMES):
        run = serving.start(model, job)
    writers = [
        _Writer(model, parameters, token_ids, text if parameters.return_full_text else "", form)
        for token_ids, text in zip(job.prompts, generate.inputs, strict=True)
    ]
    if generate.stream:
        return serving.stream(run, lambda run: _events(run, writers[0]))
    # With details the other ones are shown too.
    num_shown = parameters.best_of if parameters.details else 1
    choices = best(collect(run), parameters.best_of, num_shown)

    def answers() -> Response:
        parts = (choices[i : i + num_shown] for i in range(0, len(choices), num_shown))
        bodies = [writer.write(part) for writer, part in zip(writers, parts, strict=True)]
        return json_response(bodies[0] if form == "lmi" and not generate.is_list else bodies)

    return written(run, answers)


def _prepare(model: ServedModel, raw: RawBody, form: InputsForm) -> tuple[Generate, Job]:
    generate = read_generate(raw, model.limits)
    with named(NAMES):
        params = generate.parameters.params(generate.stream, form)
        prompts = [model.encode(text, "prompt", add_special_tokens=True) for text in generate.inputs]
        if generate.parameters.truncate is not None:
            # As in TGI, the end of the input is what stays.
            prompts = [token_ids[-generate.parameters.truncate :] for token_ids in prompts]
        return generate, Job(prompts, params, request_options(model, params))


@dataclasses.dataclass(frozen=True)
class _Writer:
    """Choices in TGI's form, or LMI's. `prefix`: what every text begins with."""

    model: ServedModel
    parameters: GenerateParameters
    prompt: list[int]
    prefix: str
    form: InputsForm

    def write(self, choices: list[Choice]) -> dict[str, Any]:
        """The answer: the first choice, and with `details` the other ones beside it."""
        first, *others = choices
        body: dict[str, Any] = {"generated_text": self.prefix + first.text}
        if self.parameters.details:
            body["details"] = self._details(first)
            if others:
                body["details"]["best_of_sequences"] = [
                    {"generated_text": self.prefix + other.text, **self._details(other)} for other in others
                ]
        return body

    def token(self, token_id: int, text: str, logprob: float | None) -> dict[str, Any]:
        """One token. LMI's older and newer handlers name its log-probability differently: both names stand."""
        token = tgi_token(self.model.tokenizer, token_id, text, logprob)
        return {**token, "log_prob": token["logprob"]} if self.form == "lmi" else token

    def ending(self, finish_reason: str | None, stop_reason: str | int | None, num_tokens: int) -> dict[str, Any]:
        """How a sequence ended, in TGI's words. The seed is the request's: there is none that would repeat it else."""
        stop = "eos_token" if stop_reason is None else "stop_sequence"
        return {
            "finish_reason": "length" if finish_reason == "length" else stop,
            "generated_tokens": num_tokens,
            "seed": self.parameters.seed,
        }

    def _details(self, choice: Choice) -> dict[str, Any]:
        tokenizer = self.model.tokenizer
        entries = choice.logprobs or []
        token_logprobs: list[float | None] = [*(entry.logprob for entry in entries)] or [None] * len(choice.token_ids)
        detokenizer = Detokenizer(tokenizer, skip_special_tokens=self.parameters.skip_special_tokens)
        details = self.ending(choice.finish_reason, choice.stop_reason, len(choice.token_ids))
        details["prefill"] = []
        if self.parameters.decoder_input_details:
            logprobs = [None, *(finite(entry.logprob) for entry in choice.prompt_logprobs or [])]
            details["prefill"] = [
                {"id": token_id, "text": tokenizer.token_text(token_id), "logprob": logprob}
                for token_id, logprob in zip(self.prompt, logprobs, strict=False)
            ]
        details["tokens"] = [
            self.token(token_id, detokenizer.push([token_id]), logprob)
            for token_id, logprob in zip(choice.token_ids, token_logprobs, strict=True)
        ]
        if self.parameters.top_n_tokens:
            details["top_tokens"] = [
                tgi_top_tokens(tokenizer, entry, self.parameters.top_n_tokens) for entry in entries
            ]
        return details


class _TextShares:
    """Which part of a delta's text is whose: several tokens may have come together, each with a text of its own."""

    def __init__(self, writer: _Writer) -> None:
        skip = writer.parameters.skip_special_tokens
        self._detokenizer = Detokenizer(writer.model.tokenizer, skip_special_tokens=skip)
        self._num_own_chars = 0  # of the text that the tokens so far make
        self._num_sent_chars = 0  # of it, what a delta has brought: a possible stop string is held back

    def of(self, delta: TextDelta) -> list[str]:
        """One text per token; together they are the delta's. The last token has what none has of its own."""
        texts = []
        sent = 0
        for token_id in delta.token_ids:
            self._num_own_chars += len(self._detokenizer.push([token_id]))
            end = max(sent, min(len(delta.text), self._num_own_chars - self._num_sent_chars))
            texts.append(delta.text[sent:end])
            sent = end
        if texts:
            texts[-1] += delta.text[sent:]
        self._num_sent_chars += len(delta.text)
        return texts


def _events(run: TextRun, writer: _Writer) -> Iterator[Any]:
    # One event per token, as TGI sends; text that several tokens made together stands with the last of them.
    pieces: list[str] = []
    shares = _TextShares(writer)
    index = 0
    tokenizer, num_top = writer.model.tokenizer, writer.parameters.top_n_tokens
    for _, delta in run:
        pieces.append(delta.text)
        texts = shares.of(delta)
        for i, token_id in enumerate(delta.token_ids):
            index += 1
            ends_delta = i == len(delta.token_ids) - 1
            entry = None if delta.logprobs is None else delta.logprobs[i]
            logprob = None if entry is None else entry.logprob
            body: dict[str, Any] = {
                "index": index,
                "token": writer.token(token_id, texts[i], logprob),
                "generated_text": None,
                "details": None,
            }
            if entry is not None and num_top:
                body["top_tokens"] = tgi_top_tokens(tokenizer, entry, num_top)
            if delta.finish_reason is not None and ends_delta:
                body["generated_text"] = writer.prefix + "".join(pieces)
                if writer.parameters.details:
                    ending = writer.ending(delta.finish_reason, delta.stop_reason, index)
                    body["details"] = {**ending, "input_length": run.num_prompt_tokens}
            yield body
