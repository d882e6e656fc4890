"""One HTTP request's generation as text: from prompts to (choice, text delta) pairs.

Joins the engine's outputs with a TextStream per choice, and stops in the engine what a stop string ended in the text.
Knows Engine, TextStream and token counts. Must not know any response format.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from container.disconnect import DisconnectWatch
from container.engine_client import Engine
from container.served_model import ServedModel
from engine.api import GenerationFailed, SamplingParams, check_request
from engine.text import TextDelta, TextStream


class TextRun:
    """The running choices of one request: choice = prompt index * n + sample index, as OpenAI counts."""

    def __init__(
        self, engine: Engine, model: ServedModel, prompts: Sequence[list[int]], params: SamplingParams
    ) -> None:
        """Checks the prompts. Raises ContextLengthExceeded or InvalidRequest."""
        for token_ids in prompts:
            check_request(token_ids, params, model.info)
        self.num_prompt_tokens = sum(map(len, prompts))
        self._engine = engine
        self._prompts = prompts
        self._params = params
        self._streams = [TextStream(model.tokenizer, params) for _ in range(len(prompts) * params.n)]

    @property
    def num_choices(self) -> int:
        """How many texts are generated."""
        return len(self._streams)

    @property
    def num_output_tokens(self) -> int:
        """Tokens generated so far, over all choices."""
        return sum(stream.num_output_tokens for stream in self._streams)

    def start(self, deadline: float, sock: Any | None) -> None:
        """Hand the prompts to the engine, and watch the client's socket. Raises EngineNotReady or Overloaded."""
        self._generation = self._engine.generate(self._prompts, self._params, deadline)
        self._watch = DisconnectWatch(sock, self._generation.cancel)

    def __iter__(self) -> Iterator[tuple[int, TextDelta]]:
        """Deltas as they come, until every choice has finished; empty ones are left out. Raises a ServingError."""
        for prompt_index, output in self._generation:
            choice = prompt_index * self._params.n + output.index
            stream = self._streams[choice]
            delta = stream.push(output)
            if stream.stopped_early:
                self._generation.stop_sequence(prompt_index, output.index)
            if delta.finish_reason in ("abort", "error"):
                raise GenerationFailed("The server stopped the generation before its end.")
            yield choice, delta

    def close(self) -> None:
        """Stop watching and generating, whatever has been reached. May be called twice."""
        self._watch.stop()
        self._generation.close()
