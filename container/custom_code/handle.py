"""The served model as a script sees it: `engine.generate(...)` and `engine.stream(...)`.

Knows nothing of threads or sockets: what is bound to it does the work.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

# A text to continue, the same as token ids, or a conversation for the model's chat template.
Prompt = str | Sequence[int] | Sequence[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Piece:
    """Some more of a text; with the last piece, how it ended."""

    text: str
    num_tokens: int
    finish_reason: str | None


@dataclasses.dataclass(frozen=True)
class GeneratedText:
    """A whole text. finish_reason: "stop" or "length"."""

    text: str
    finish_reason: str | None
    num_output_tokens: int


class Backend(Protocol):
    """What generates."""

    def pieces(self, prompt: Prompt, parameters: dict[str, Any]) -> Iterator[Piece]:
        """One text, piece by piece, for the calling thread; closing the iterator ends the generation."""


class EngineHandle:
    """Scripts import the one instance before the worker has an engine; the worker binds it then."""

    def __init__(self) -> None:
        self._backend: Backend | None = None

    def bind(self, backend: Backend) -> None:
        """Called once by the worker, before a script's first function."""
        self._backend = backend

    def generate(self, prompt: Prompt, **parameters: Any) -> GeneratedText:
        """One text. parameters: those of `engine.SamplingParams` (`max_tokens`, `temperature`, `top_p`, `stop`, …).

        prompt: a str or a list of token ids is continued; a list of {"role", "content"} goes through the chat template.
        Blocks the calling thread only. Raises what a route of ours would: its class names the HTTP status.
        """
        pieces = list(self._pieces(prompt, parameters))
        last = pieces[-1] if pieces else Piece("", 0, None)
        return GeneratedText(
            "".join(piece.text for piece in pieces), last.finish_reason, sum(piece.num_tokens for piece in pieces)
        )

    def stream(self, prompt: Prompt, **parameters: Any) -> Iterator[str]:
        """The same piece by piece, as they come. Closing the iterator ends the generation."""
        for piece in self._pieces(prompt, parameters):
            if piece.text:
                yield piece.text

    def _pieces(self, prompt: Prompt, parameters: dict[str, Any]) -> Iterator[Piece]:
        if self._backend is None:
            raise RuntimeError("the engine can be used from a script's functions, not while the script is imported")
        return self._backend.pieces(prompt, parameters)


# The only instance: a script says `from container.custom_code import engine`, and is given nothing to pass around.
engine = EngineHandle()
