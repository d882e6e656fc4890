"""The offline API: generate with a model in this process, without a server.

    from engine import LLM, SamplingParams
    LLM(model="DIR").generate(["Hello"], SamplingParams(temperature=0, max_tokens=32))

Knows the core, a runner and text. Must not know sockets or HTTP. The names are vLLM's, so that a script for one runs on
the other.
"""

import dataclasses
import logging
from collections.abc import Mapping
from collections.abc import Sequence as SequenceABC
from typing import Any, TypedDict

from tqdm import tqdm

from engine.api import (
    EngineConfig,
    FinishReason,
    GenerateRequest,
    InvalidRequest,
    RequestFailed,
    RequestOutput,
    SamplingParams,
    check_request,
)
from engine.core import EngineCore
from engine.runner import load_runner
from engine.text import TextStream, Tokenizer

log = logging.getLogger(__name__)

_CLIENT = 0


class TokensPrompt(TypedDict):
    """A prompt that is already token ids."""

    prompt_token_ids: list[int]


Prompt = str | TokensPrompt


@dataclasses.dataclass(slots=True)
class CompletionOutput:
    """One of the n samples of a prompt. `stop_reason` is the stop string or the token id that ended it, if one did."""

    index: int
    text: str = ""
    token_ids: list[int] = dataclasses.field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None


@dataclasses.dataclass(slots=True)
class GenerationOutput:
    """What became of one prompt. `prompt` is None where token ids were given."""

    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]


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

    @property
    def vocab_size(self) -> int:
        """Token ids are below this."""
        return self._model.vocab_size

    def generate(
        self,
        prompts: Prompt | SequenceABC[Prompt],
        sampling_params: SamplingParams | SequenceABC[SamplingParams] | None = None,
        use_tqdm: bool = True,
    ) -> list[GenerationOutput]:
        """Continue every prompt; the results are in the order of the prompts.

        prompts: a str, `{"prompt_token_ids": [...]}`, or a list of either.
        sampling_params: one for all, or one per prompt; the model's own defaults, with 16 tokens, if not given.
        Raises InvalidRequest or ContextLengthExceeded, before anything is generated, if one cannot be served.
        """
        prompt_list: list[Prompt] = [prompts] if isinstance(prompts, str | Mapping) else _as_list(prompts, "prompts")
        params_list = self._params_for(prompt_list, sampling_params)
        results = [self._result_for(prompt) for prompt in prompt_list]
        for result, params in zip(results, params_list, strict=True):
            check_request(result.prompt_token_ids, params, self._model)
        streams: dict[tuple[int, int], TextStream] = {}
        try:
            for request_id, (result, params) in enumerate(zip(results, params_list, strict=True)):
                self._core.add_request(_CLIENT, _request(request_id, result, params))
                for index in range(params.n):
                    result.outputs.append(CompletionOutput(index))
                    streams[request_id, index] = TextStream(self._tokenizer, params)
            self._run(results, streams, use_tqdm)
        finally:
            # After Ctrl-C or an error nothing of this call may stay behind.
            self._core.abort_client(_CLIENT)
        return results

    def _run(self, results: list[GenerationOutput], streams: dict[tuple[int, int], TextStream], use_tqdm: bool) -> None:
        num_tokens = 0
        with tqdm(total=len(streams), desc="Generating", unit="seq", disable=not use_tqdm) as bar:
            while self._core.has_work():
                for item in self._core.step():
                    if isinstance(item.message, RequestFailed):
                        raise RuntimeError(item.message.message)
                    num_tokens += len(item.message.new_token_ids)
                    self._take(results, streams, item.message, bar)
                rate = num_tokens / max(1e-9, bar.format_dict["elapsed"])
                bar.set_postfix_str(f"{rate:.1f} tok/s", refresh=False)

    def _take(
        self,
        results: list[GenerationOutput],
        streams: dict[tuple[int, int], TextStream],
        output: RequestOutput,
        bar: "tqdm[Any]",
    ) -> None:
        completion = results[output.request_id].outputs[output.index]
        stream = streams[output.request_id, output.index]
        delta = stream.push(output)
        completion.text += delta.text
        completion.token_ids.extend(delta.token_ids)
        if delta.finish_reason is None:
            return
        completion.finish_reason, completion.stop_reason = delta.finish_reason, delta.stop_reason
        bar.update()
        if stream.stopped_early:
            self._core.abort(_CLIENT, output.request_id, output.index)

    def _params_for(
        self, prompts: list[Prompt], sampling_params: SamplingParams | SequenceABC[SamplingParams] | None
    ) -> list[SamplingParams]:
        if sampling_params is None:
            sampling_params = SamplingParams(
                temperature=self._model.default_temperature,
                top_k=self._model.default_top_k,
                top_p=self._model.default_top_p,
            )
        if isinstance(sampling_params, SamplingParams):
            return [sampling_params] * len(prompts)
        params_list: list[SamplingParams] = _as_list(sampling_params, "sampling_params")
        if len(params_list) != len(prompts) or not all(isinstance(params, SamplingParams) for params in params_list):
            raise InvalidRequest(
                f"sampling_params must be one SamplingParams, or one for each of the {len(prompts)} prompts",
                "sampling_params",
            )
        return params_list

    def _result_for(self, prompt: Prompt) -> GenerationOutput:
        if isinstance(prompt, str):
            return GenerationOutput(prompt, self._tokenizer.encode(prompt), [])
        token_ids = prompt.get("prompt_token_ids") if isinstance(prompt, Mapping) else None
        if not isinstance(token_ids, list) or any(type(token_id) is not int for token_id in token_ids):
            raise InvalidRequest("a prompt must be a str or {'prompt_token_ids': [...]} with integers", "prompts")
        return GenerationOutput(None, list(token_ids), [])


def _as_list(value: Any, param: str) -> list[Any]:
    if not isinstance(value, SequenceABC) or isinstance(value, str | bytes):
        raise InvalidRequest(f"'{param}' must be a list", param)
    return list(value)


def _request(request_id: int, result: GenerationOutput, params: SamplingParams) -> GenerateRequest:
    return GenerateRequest(
        request_id=request_id, prompt_token_ids=result.prompt_token_ids, params=params, deadline=float("inf")
    )
