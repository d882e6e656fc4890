"""What `LLM` returns: one object per prompt, with vLLM's names.

Knows the engine's outputs and tokenizers. Must not know the engine.
"""

import dataclasses
from collections.abc import Sequence as SequenceABC

from engine.api import FinishReason, TokenLogprobs
from engine.text import TextDelta, Tokenizer


@dataclasses.dataclass(frozen=True, slots=True)
class Logprob:
    """One token's log-probability at one place. `rank`: 1 is the most likely token."""

    logprob: float
    rank: int
    decoded_token: str


@dataclasses.dataclass(slots=True)
class CompletionOutput:
    """One of the n samples of a prompt.

    stop_reason: the stop string or the token id that ended it, if one did.
    logprobs: per token of `token_ids` the asked-for most likely ones and its own, by token id; None if not asked for.
    cumulative_logprob: the sum of the tokens' own; None without `logprobs`.
    """

    index: int
    text: str = ""
    token_ids: list[int] = dataclasses.field(default_factory=list)
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None

    @property
    def finished(self) -> bool:
        """Whether it has ended."""
        return self.finish_reason is not None

    def add(self, delta: TextDelta, tokenizer: Tokenizer) -> None:
        """Take what comes next."""
        self.text += delta.text
        self.token_ids.extend(delta.token_ids)
        if delta.logprobs is not None:
            self.logprobs = self.logprobs or []
            self.logprobs += map_logprobs(delta.token_ids, delta.logprobs, tokenizer)
            self.cumulative_logprob = (self.cumulative_logprob or 0.0) + sum(entry.logprob for entry in delta.logprobs)
        if delta.finish_reason is not None:
            self.finish_reason, self.stop_reason = delta.finish_reason, delta.stop_reason


@dataclasses.dataclass(slots=True)
class GenerationOutput:
    """What became of one prompt.

    request_id: unique within its `LLM`.
    prompt: None where token ids were given.
    prompt_logprobs: like `CompletionOutput.logprobs`, per token of the prompt; None for the first one.
    num_cached_tokens: how many tokens of the prompt the prefix cache had, as its first sample to tell says; None until
        one has.
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    num_cached_tokens: int | None = None

    @property
    def finished(self) -> bool:
        """Whether every sample has ended."""
        return all(output.finished for output in self.outputs)

    def add_prompt_logprobs(self, entries: SequenceABC[TokenLogprobs], tokenizer: Tokenizer) -> None:
        """Take the prompt's log-probabilities."""
        self.prompt_logprobs = [None, *map_logprobs(self.prompt_token_ids[1:], entries, tokenizer)]


def map_logprobs(
    ids: SequenceABC[int], entries: SequenceABC[TokenLogprobs], tokenizer: Tokenizer
) -> list[dict[int, Logprob]]:
    """The entries as vLLM's maps: the token that stands there first, then the most likely ones, best first."""
    maps = []
    for token_id, entry in zip(ids, entries, strict=True):
        by_id = {token_id: Logprob(entry.logprob, entry.rank, tokenizer.token_text(token_id))}
        for rank, (top_id, logprob) in enumerate(zip(entry.top_ids, entry.top_logprobs, strict=True), start=1):
            by_id.setdefault(top_id, Logprob(logprob, rank, tokenizer.token_text(top_id)))
        maps.append(by_id)
    return maps
