"""Log-probabilities of a step: which rows of logits they need, and from tensors to `TokenLogprobs`.

Must not know the scheduler, or what becomes of the entries.
"""

import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from engine.api import TokenLogprobs
from engine.sequence import Sequence
from kernels import Kernels, Logprobs

# Rows of logits that are looked at together: a long prompt's would be gigabytes at a large vocabulary.
MAX_ROWS = 64


@dataclasses.dataclass(frozen=True, slots=True)
class LogprobRows:
    """Rows that some scheduled pairs ask about, the pairs one after the other.

    indices: int64 [n], which rows of the step's tensor they are. token_ids: int64 [n], the token at each.
    pairs: (index of the scheduled pair, its number of rows, how many most likely tokens it asks for).
    """

    indices: Tensor
    token_ids: Tensor
    pairs: tuple[tuple[int, int, int], ...]


@dataclasses.dataclass(frozen=True, slots=True)
class PendingLogprobs:
    """The log-probabilities of `LogprobRows` under way, in parts of at most MAX_ROWS rows."""

    parts: tuple[Logprobs, ...]
    pairs: tuple[tuple[int, int, int], ...]

    def collect(self, num_scheduled: int) -> list[list[TokenLogprobs]]:
        """Wait for them; one list per scheduled pair, in the order of its rows."""
        result: list[list[TokenLogprobs]] = [[] for _ in range(num_scheduled)]
        entries = self._entries()
        for index, num_rows, num_top in self.pairs:
            for _ in range(num_rows):
                logprob, rank, ids, tops = next(entries)
                result[index].append(TokenLogprobs(logprob, rank, ids[:num_top], tops[:num_top]))
        return result

    def _entries(self) -> Iterator[tuple[float, int, list[int], list[float]]]:
        for part in self.parts:
            columns = (part.chosen, part.ranks, part.top_ids, part.top)
            yield from zip(*(column.tolist() for column in columns), strict=True)


def prompt_rows(scheduled: tuple[tuple[Sequence, int], ...]) -> LogprobRows | None:
    """Where the step computes what prompt tokens are predicted from, in the batch's tokens; None if nobody asks.

    Prompt token i is predicted at token i - 1. A sequence that has output has had its prompt's entries, and is not
    asked again when it comes back from a preemption.
    """
    indices: list[int] = []
    token_ids: list[int] = []
    pairs: list[tuple[int, int, int]] = []
    offset = 0
    for index, (sequence, num_tokens) in enumerate(scheduled):
        num_top = sequence.request.params.prompt_logprobs
        if num_top is not None and sequence.num_output_tokens == 0:
            first = sequence.num_computed_tokens
            last = min(first + num_tokens, sequence.num_prompt_tokens - 1)
            if last > first:
                indices += range(offset, offset + last - first)
                token_ids += sequence.token_ids[first + 1 : last + 1]
                pairs.append((index, last - first, num_top))
        offset += num_tokens
    if not pairs:
        return None
    return LogprobRows(torch.tensor(indices), torch.tensor(token_ids), tuple(pairs))


def compute(rows: LogprobRows, logits_of: Callable[[Tensor], Tensor], kernels: Kernels) -> PendingLogprobs:
    """Start computing the log-probabilities of rows. logits_of: from some of `rows.indices` to their logits."""
    num_top = max(pair[2] for pair in rows.pairs)
    slices = [slice(start, start + MAX_ROWS) for start in range(0, len(rows.indices), MAX_ROWS)]
    return PendingLogprobs(
        tuple(kernels.logprobs(logits_of(rows.indices[part]), rows.token_ids[part], num_top) for part in slices),
        rows.pairs,
    )
