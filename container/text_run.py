"""One HTTP request's generation as text: from prompts to (choice, text delta) pairs.

Joins the engine's outputs with a TextStream per choice, and stops in the engine what a stop string ended in the text.
Knows Engine, TextStream and token counts. Must not know any response format.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from container.disconnect import DisconnectWatch
from container.engine_client import Engine, Generation, RequestOptions
from container.served_model import ServedModel
from engine.api import GenerationFailed, InvalidRequest, SamplingParams, check_request
from engine.text import TextDelta, TextStream

# Of one request's prompts, over all texts: a hundred megabytes of answer at the most.
_MAX_PROMPT_LOGPROBS = 2**20
# Of one request's texts at their longest: the worker holds them until the answer is written, at up to half a kilobyte
# each. A single text gets its twenty per token in any context of up to 199,000 tokens.
_MAX_LOGPROBS = 2**22


@dataclasses.dataclass(frozen=True)
class Job:
    """What a request asks for, in the engine's terms: `params.n` continuations of each prompt."""

    prompts: Sequence[list[int]]
    params: SamplingParams
    options: RequestOptions = dataclasses.field(default_factory=RequestOptions)


class TextRun:
    """The running choices of one request: choice = prompt index * n + sample index, as OpenAI counts."""

    def __init__(self, engine: Engine, model: ServedModel, job: Job) -> None:
        """Checks the prompts. Raises ContextLengthExceeded or InvalidRequest."""
        _check(job, model)
        self.job = job
        self._engine = engine
        # Called once, when nothing of it is with the engine any more.
        self.on_close: Callable[[], None] = lambda: None
        self._generation: Generation | None = None
        self._watch: DisconnectWatch | None = None
        self._streams = [TextStream(model.tokenizer, job.params) for _ in range(len(job.prompts) * job.params.n)]

    @property
    def num_choices(self) -> int:
        """How many texts are generated."""
        return len(self._streams)

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of all prompts, each counted once whatever `n` is."""
        return sum(map(len, self.job.prompts))

    @property
    def num_cached_tokens(self) -> int:
        """Tokens of the prompts that the prefix cache had, as far as the engine has said.

        A prompt counts once, as its first sample that told: the samples after it find what that one has computed.
        """
        n = self.job.params.n
        told = ([s.num_cached_tokens for s in self._streams[i : i + n]] for i in range(0, len(self._streams), n))
        return sum(next((count for count in counts if count is not None), 0) for counts in told)

    @property
    def num_output_tokens(self) -> int:
        """Tokens generated so far, over all choices."""
        return sum(stream.num_output_tokens for stream in self._streams)

    def start(self, deadline: float, sock: Any | None) -> None:
        """Hand the prompts to the engine, and watch the client's socket. Raises EngineNotReady or Overloaded."""
        self._generation = self._engine.generate(self.job.prompts, self.job.params, deadline, self.job.options)
        self._watch = DisconnectWatch(sock, self._generation.cancel)

    def __iter__(self) -> Iterator[tuple[int, TextDelta]]:
        """Deltas as they come, until every choice has finished. Raises a ServingError."""
        assert self._generation is not None, "start comes first"
        for prompt_index, output in self._generation:
            choice = prompt_index * self.job.params.n + output.index
            stream = self._streams[choice]
            delta = stream.push(output)
            if stream.stopped_early:
                self._generation.stop_sequence(prompt_index, output.index)
            if delta.finish_reason in ("abort", "error"):
                raise GenerationFailed("The server stopped the generation before its end.")
            yield choice, delta

    def cancel(self) -> None:
        """The client has left: whoever iterates gets RequestAborted. After `start`."""
        if self._generation is not None:
            self._generation.cancel()

    def close(self) -> None:
        """Stop watching and generating, whatever has been reached. May be called twice."""
        if self._watch is not None:
            self._watch.stop()
        if self._generation is not None:
            self._generation.close()
        on_close, self.on_close = self.on_close, lambda: None
        on_close()


def _check(job: Job, model: ServedModel) -> None:
    # The parameters' own ids, of which there may be a hundred thousand, need to be looked at once.
    rest = msgspec.structs.replace(job.params, allowed_token_ids=None, logit_bias={}, stop_token_ids=())
    for i, token_ids in enumerate(job.prompts):
        check_request(token_ids, rest if i else job.params, model.info, priority=job.options.priority)
    params, num_prompt_tokens = job.params, sum(map(len, job.prompts))
    num_top = params.prompt_logprobs
    if num_top is not None and num_prompt_tokens * params.n * (1 + num_top) > _MAX_PROMPT_LOGPROBS:
        raise InvalidRequest(
            f"'prompt_logprobs' asks for over {_MAX_PROMPT_LOGPROBS} log-probabilities: ask for fewer per token, or "
            "send fewer and shorter prompts at once.",
            "prompt_logprobs",
        )
    if params.logprobs is None:
        return
    if params.max_tokens is None:
        num_tokens = len(job.prompts) * model.info.max_model_len - num_prompt_tokens
    else:
        num_tokens = len(job.prompts) * params.max_tokens
    if num_tokens * params.n * (1 + params.logprobs) > _MAX_LOGPROBS:
        raise InvalidRequest(
            f"'logprobs' may come to over {_MAX_LOGPROBS} log-probabilities: ask for fewer per token, or for fewer and "
            "shorter texts at once.",
            "logprobs",
        )
