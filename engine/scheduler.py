"""The scheduler: which sequences run in the next step, and how many tokens of each.

There is no prefill phase and no decode phase. A step is {sequence: number of tokens}; every running sequence asks for
the tokens whose K/V is missing (`num_uncomputed_tokens`: one while it decodes, a whole prompt when it is new, the rest
of one when it was cut to the budget), and gets as many as the step's budget leaves.

Order is first come, first served. When blocks run out, the youngest running sequence is preempted: its blocks are taken
back and it waits, first in line, to be computed again with the tokens it already has.

Knows sequences, counts and blocks. Must not know tensors, sockets or time.
"""

from collections import deque
from collections.abc import Iterator

from engine.api import FinishReason, Overloaded
from engine.kv_cache import KVCacheManager
from engine.sequence import NO_ROW, SchedulerOutput, Sequence


class Scheduler:
    """Holds every unfinished sequence, waiting or running."""

    def __init__(
        self, kv_cache: KVCacheManager, *, max_num_seqs: int, max_num_batched_tokens: int, max_num_waiting: int
    ) -> None:
        self.kv_cache = kv_cache
        self._max_num_batched_tokens = max_num_batched_tokens
        self._max_num_waiting = max_num_waiting
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self._free_rows = list(range(max_num_seqs - 1, -1, -1))

    @property
    def num_waiting(self) -> int:
        """Sequences not admitted yet, or preempted."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Sequences that hold blocks and a row."""
        return len(self._running)

    def has_unfinished(self) -> bool:
        """Whether a step has anything to do."""
        return bool(self._waiting or self._running)

    def unfinished(self) -> Iterator[Sequence]:
        """Every unfinished sequence."""
        yield from self._running
        yield from self._waiting

    def add(self, sequences: list[Sequence]) -> None:
        """Queue the sequences of one request, all or none. Raises Overloaded when the waiting queue is full.

        What the next step can admit does not count as waiting, and an empty queue takes a request of any n: otherwise
        n > max_num_waiting could never be served.
        """
        num_waiting_after = len(self._waiting) + len(sequences) - len(self._free_rows)
        if self._waiting and num_waiting_after > self._max_num_waiting:
            raise Overloaded("The waiting queue is full; try again later.")
        self._waiting.extend(sequences)

    def schedule(self) -> SchedulerOutput:
        """The next step. Every scheduled token has its block, and every scheduled sequence its row."""
        scheduled: list[tuple[Sequence, int]] = []
        budget = self._max_num_batched_tokens
        num_preempted = 0
        # Preemption only removes sequences at the end of the list, which this loop has not reached.
        index = 0
        while index < len(self._running) and budget > 0:
            sequence = self._running[index]
            num_tokens = min(sequence.num_uncomputed_tokens, budget)
            while not self.kv_cache.grow(sequence, sequence.num_computed_tokens + num_tokens):
                num_preempted += 1
                if self._preempt_youngest() is sequence:
                    break
            else:
                scheduled.append((sequence, num_tokens))
                budget -= num_tokens
                index += 1
        # After a preemption nobody is admitted: the blocks it won back are for those that run.
        while self._waiting and self._free_rows and budget > 0 and not num_preempted:
            sequence = self._waiting[0]
            # The blocks of the whole prompt are taken at once, so that a half-computed prompt never waits for blocks.
            if not self.kv_cache.grow(sequence, sequence.num_tokens):
                break
            self._waiting.popleft()
            sequence.row = self._free_rows.pop()
            self._running.append(sequence)
            num_tokens = min(sequence.num_uncomputed_tokens, budget)
            scheduled.append((sequence, num_tokens))
            budget -= num_tokens
        return SchedulerOutput(tuple(scheduled))

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """End an unfinished sequence: its blocks and its row are free at once."""
        sequence.finish_reason = reason
        if sequence.row == NO_ROW:
            self._waiting.remove(sequence)
        else:
            self._running.remove(sequence)
            self._release(sequence)

    def _preempt_youngest(self) -> Sequence:
        victim = self._running.pop()
        self._release(victim)
        self._waiting.appendleft(victim)
        return victim

    def _release(self, sequence: Sequence) -> None:
        self.kv_cache.release(sequence)
        self._free_rows.append(sequence.row)
        sequence.row = NO_ROW
