"""Log-probabilities of a step: which rows of logits they need, and from tensors to `TokenLogprobs`.

Must not know the scheduler, or what becomes of the entries.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from engine.api import TokenLogprobs
from engine.runner.staging import Packet, Segment
from engine.sequence import Sequence
from kernels import Kernels

# Rows of logits that are looked at together: a long prompt's would be gigabytes at a large vocabulary.
MAX_ROWS = 64
_TENSORS_PER_PART = 4


@dataclasses.dataclass(frozen=True, slots=True)
class LogprobRows:
    """Rows that some scheduled pairs ask about, the pairs one after the other.

    indices: which rows of the step's tensor they are. token_ids: the token at each; None is what the row samples.
    pairs: (index of the scheduled pair, its number of rows, how many most likely tokens it asks for).
    """

    indices: Segment
    token_ids: Segment | None
    pairs: tuple[tuple[int, int, int], ...]

    @property
    def num_parts(self) -> int:
        """Parts of at most MAX_ROWS rows."""
        return -(-self.indices.num_words // MAX_ROWS)

    def compute(
        self, packet: Packet, logits_of: Callable[[Tensor], Tensor], sampled: Tensor | None, kernels: Kernels
    ) -> Iterator[Tensor]:
        """On the device: four tensors per part, the fields of `Logprobs`.

        logits_of: from some of the indices, int64, to their logits. sampled: int64, the tokens by sampled row.
        """
        indices = packet.on_device(self.indices).to(torch.int64)
        if self.token_ids is not None:
            token_ids = packet.on_device(self.token_ids).to(torch.int64)
        else:
            assert sampled is not None
            token_ids = sampled.index_select(0, indices)
        num_top = max(pair[2] for pair in self.pairs)
        for start in range(0, len(indices), MAX_ROWS):
            part = slice(start, start + MAX_ROWS)
            entry = kernels.logprobs(logits_of(indices[part]), token_ids[part], num_top)
            yield from (entry.chosen, entry.ranks, entry.top_ids, entry.top)

    def collect(self, tensors: tuple[Tensor, ...], num_scheduled: int) -> list[list[TokenLogprobs]]:
        """From the host's copies of what `compute` gave: one list per scheduled pair, in the order of its rows."""
        result: list[list[TokenLogprobs]] = [[] for _ in range(num_scheduled)]
        entries = _entries(tensors)
        for index, num_rows, num_top in self.pairs:
            for _ in range(num_rows):
                logprob, rank, ids, tops = next(entries)
                result[index].append(TokenLogprobs(logprob, rank, ids[:num_top], tops[:num_top]))
        return result


def num_tensors(rows: LogprobRows | None) -> int:
    """How many tensors `compute` gives."""
    return 0 if rows is None else rows.num_parts * _TENSORS_PER_PART


def _entries(tensors: tuple[Tensor, ...]) -> Iterator[tuple[float, int, list[int], list[float]]]:
    for start in range(0, len(tensors), _TENSORS_PER_PART):
        part = tensors[start : start + _TENSORS_PER_PART]
        yield from zip(*(column.tolist() for column in part), strict=True)


def prompt_rows(
    packet: Packet, prompts: Iterable[tuple[int, Sequence]], starts: list[int], first_positions: list[int]
) -> LogprobRows | None:
    """Where the step computes what prompt tokens are predicted from, in the batch's tokens; None if nobody asks.

    prompts: (scheduled pair, sequence). starts: prefix sum of the step's tokens. first_positions: of each pair.
    Prompt token i is predicted at token i - 1. A sequence that has output has had its prompt's entries, and is not
    asked again when it comes back from a preemption.
    """
    indices: list[int] = []
    token_ids: list[int] = []
    pairs: list[tuple[int, int, int]] = []
    for index, sequence in prompts:
        num_top = sequence.request.params.prompt_logprobs
        if num_top is None or sequence.num_output_tokens:
            continue
        start, end, first = starts[index], starts[index + 1], first_positions[index]
        last = min(first + end - start, sequence.num_prompt_tokens - 1)
        if last > first:
            indices += range(start, start + last - first)
            token_ids += sequence.token_ids[first + 1 : last + 1]
            pairs.append((index, last - first, num_top))
    if not pairs:
        return None
    return LogprobRows(packet.put(indices), packet.put(token_ids), tuple(pairs))
