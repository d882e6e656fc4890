"""The offline API: generate with a model in this process, without a server.

    from engine import LLM, SamplingParams
    LLM(model="DIR").generate(["Hello"], SamplingParams(temperature=0, max_tokens=32))

Knows the core, a runner and text. Must not know sockets or HTTP. The names are vLLM's, so that a script for one runs on
the other.
"""

import dataclasses
import itertools
import logging
from collections.abc import Mapping
from collections.abc import Sequence as SequenceABC
from typing import Any, TypedDict, TypeVar

from tqdm import tqdm

from engine.api import (
    EngineConfig,
    GenerateRequest,
    InvalidRequest,
    RequestOutput,
    SamplingParams,
    check_request,
)
from engine.core import EngineCore
from engine.interrupts import interrupt_at_end
from engine.outputs import CompletionOutput, GenerationOutput
from engine.runner import load_runner
from engine.text import ChatTemplate, TextStream, Tokenizer, bad_words_ids

log = logging.getLogger(__name__)

_CLIENT = 0

ItemT = TypeVar("ItemT")
Message = dict[str, Any]
Params = SamplingParams | SequenceABC[SamplingParams] | None


class TokensPrompt(TypedDict):
    """A prompt that is already token ids."""

    prompt_token_ids: list[int]


Prompt = str | TokensPrompt


@dataclasses.dataclass(slots=True)
class _Task:
    """One prompt on its way: the result so far, and a text stream per sample."""

    result: GenerationOutput
    streams: list[TextStream]


class LLM:
    """A model and its engine in this process. Raises ValueError when the directory or a setting is unusable.

    model: model directory. dtype, max_model_len and the other keyword arguments are those of `EngineConfig`; an unknown
    one is a TypeError.
    """

    def __init__(self, model: str, dtype: str = "auto", max_model_len: int | None = None, **settings: Any) -> None:
        config = EngineConfig(model=model, dtype=dtype, max_model_len=max_model_len, **settings)  # type: ignore[arg-type]
        runner, self._model = load_runner(config, lambda stage: log.info("%s", stage))
        # Offline, nobody else waits: the queue is as long as the list of prompts.
        config = dataclasses.replace(config, max_num_waiting=2**31)
        self._core = EngineCore(config, self._model, runner)
        self._tokenizer = Tokenizer.from_dir(self._model.model_dir)
        self._chat_template = ChatTemplate.from_dir(self._model.model_dir, self._tokenizer)
        self._request_ids = itertools.count()

    @property
    def vocab_size(self) -> int:
        """Token ids are below this."""
        return self._model.vocab_size

    def get_tokenizer(self) -> Tokenizer:
        """The model's tokenizer: `encode`, `decode`, and what its special tokens are."""
        return self._tokenizer

    def generate(
        self,
        prompts: Prompt | SequenceABC[Prompt],
        sampling_params: Params = None,
        use_tqdm: bool = True,
        *,
        priority: SequenceABC[int] | None = None,
    ) -> list[GenerationOutput]:
        """Continue every prompt; the results are in the order of the prompts.

        prompts: a str, `{"prompt_token_ids": [...]}`, or a list of either.
        sampling_params: one for all, or one per prompt; the model's own defaults, with 16 tokens, if not given.
        priority: one per prompt; lower is computed earlier.
        Raises InvalidRequest or ContextLengthExceeded, before anything is generated, if one cannot be served.
        """
        prompt_list: list[Prompt] = [prompts] if isinstance(prompts, str | Mapping) else _as_list(prompts, "prompts")
        tokenized = [self._tokenize(prompt) for prompt in prompt_list]
        return self._generate(tokenized, sampling_params, use_tqdm, priority)

    def chat(  # noqa: PLR0913 - vLLM's
        self,
        messages: list[Message] | SequenceABC[list[Message]],
        sampling_params: Params = None,
        use_tqdm: bool = True,
        *,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        tools: list[dict[str, Any]] | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> list[GenerationOutput]:
        """Answer every conversation; the results are in their order, and their `prompt` is the rendered text.

        messages: one conversation as a list of OpenAI's messages (text only), or a list of such lists.
        chat_template: a Jinja template to use in place of the model's.
        tools, chat_template_kwargs: what the template may show of tools, and its further variables.
        Raises InvalidRequest where the template refuses one, and whatever `generate` does.
        """
        listed = _as_list(messages, "messages")
        conversations = [listed] if listed and all(isinstance(message, Mapping) for message in listed) else listed
        template = self._chat_template
        if chat_template is not None:
            try:
                template = ChatTemplate({"default": chat_template}, self._tokenizer.special_tokens)
            except ValueError as error:
                raise InvalidRequest(str(error), "chat_template") from error
        tokenized: list[tuple[str | None, list[int]]] = []
        for conversation in conversations:
            text = template.render(
                _as_list(conversation, "messages"),
                tools=tools,
                add_generation_prompt=add_generation_prompt,
                kwargs=chat_template_kwargs,
            )
            tokenized.append((text, self._tokenizer.encode(text, add_special_tokens=False)))
        return self._generate(tokenized, sampling_params, use_tqdm, None)

    def _generate(
        self,
        prompts: list[tuple[str | None, list[int]]],
        sampling_params: Params,
        use_tqdm: bool,
        priority: SequenceABC[int] | None,
    ) -> list[GenerationOutput]:
        params_list = self._params_for(len(prompts), sampling_params)
        priorities = _one_each([0] * len(prompts) if priority is None else priority, len(prompts), "priority", int)
        if any(isinstance(one, bool) for one in priorities):
            raise InvalidRequest("'priority' must hold integers.", "priority")
        requests: list[GenerateRequest] = []
        tasks: dict[int, _Task] = {}
        for (text, token_ids), params, rank in zip(prompts, params_list, priorities, strict=True):
            check_request(token_ids, params, self._model, priority=rank)
            request_id = next(self._request_ids)
            streams = [TextStream(self._tokenizer, params) for _ in range(params.n)]
            outputs = [CompletionOutput(index) for index in range(params.n)]
            tasks[request_id] = _Task(GenerationOutput(str(request_id), text, token_ids, outputs), streams)
            requests.append(self._request(request_id, token_ids, params, rank))
        try:
            with interrupt_at_end():
                for request in requests:
                    self._core.add_request(_CLIENT, request)
            self._run(tasks, use_tqdm)
        finally:
            # After Ctrl-C or an error nothing of this call may stay behind.
            with interrupt_at_end():
                self._core.abort_client(_CLIENT)
        return [task.result for task in tasks.values()]

    def _request(self, request_id: int, token_ids: list[int], params: SamplingParams, priority: int) -> GenerateRequest:
        return GenerateRequest(
            request_id=request_id,
            prompt_token_ids=token_ids,
            params=params,
            deadline=float("inf"),
            bad_words_ids=bad_words_ids(self._tokenizer, params.bad_words, self._model.vocab_size),
            priority=priority,
        )

    def _run(self, tasks: dict[int, _Task], use_tqdm: bool) -> None:
        num_input_tokens = num_output_tokens = 0
        num_sequences = sum(len(task.streams) for task in tasks.values())
        with tqdm(total=num_sequences, desc="Generating", unit="seq", disable=not use_tqdm) as bar:
            while self._core.has_work():
                with interrupt_at_end():
                    outputs = self._core.step().get(_CLIENT, [])
                for output in outputs:
                    task = tasks[output.request_id]
                    if not any(completion.token_ids for completion in task.result.outputs):
                        num_input_tokens += len(task.result.prompt_token_ids)
                    num_output_tokens += len(output.new_token_ids)
                    bar.update(self._take(task, output))
                elapsed_s = max(1e-9, bar.format_dict["elapsed"])
                rates = (num_input_tokens / elapsed_s, num_output_tokens / elapsed_s)
                bar.set_postfix_str("input {:.1f} tok/s, output {:.1f} tok/s".format(*rates), refresh=False)

    def _take(self, task: _Task, output: RequestOutput) -> int:
        """Take one output; returns how many sequences it ended."""
        result, stream = task.result, task.streams[output.index]
        delta = stream.push(output)
        result.outputs[output.index].add(delta, self._tokenizer)
        if delta.prompt_logprobs is not None and result.prompt_logprobs is None:
            result.add_prompt_logprobs(delta.prompt_logprobs, self._tokenizer)
        told = (stream.num_cached_tokens for stream in task.streams)
        result.num_cached_tokens = next((count for count in told if count is not None), None)
        if stream.stopped_early:
            self._core.abort(_CLIENT, output.request_id, output.index)
        return int(delta.finish_reason is not None)

    def _params_for(self, num_prompts: int, sampling_params: Params) -> list[SamplingParams]:
        if sampling_params is None:
            sampling_params = SamplingParams(
                temperature=self._model.default_temperature,
                top_k=self._model.default_top_k,
                top_p=self._model.default_top_p,
            )
        if isinstance(sampling_params, SamplingParams):
            return [sampling_params] * num_prompts
        return _one_each(sampling_params, num_prompts, "sampling_params", SamplingParams)

    def _tokenize(self, prompt: Prompt) -> tuple[str | None, list[int]]:
        if isinstance(prompt, str):
            return prompt, self._tokenizer.encode(prompt)
        token_ids = prompt.get("prompt_token_ids") if isinstance(prompt, Mapping) else None
        if not isinstance(token_ids, list) or any(type(token_id) is not int for token_id in token_ids):
            raise InvalidRequest("a prompt must be a str or {'prompt_token_ids': [...]} with integers", "prompts")
        return None, list(token_ids)


def _as_list(value: Any, param: str) -> list[Any]:
    if not isinstance(value, SequenceABC) or isinstance(value, str | bytes):
        raise InvalidRequest(f"'{param}' must be a list", param)
    return list(value)


def _one_each(value: Any, num: int, param: str, kind: type[ItemT]) -> list[ItemT]:
    values: list[ItemT] = _as_list(value, param)
    if len(values) != num or not all(isinstance(one, kind) for one in values):
        raise InvalidRequest(f"'{param}' must be a list of {num} {kind.__name__}, one for each prompt", param)
    return values
