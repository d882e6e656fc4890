"""The scheduler: which sequences run in the next step, and how many tokens of each.

There is no prefill phase and no decode phase. A step is {sequence: number of tokens}; a running sequence asks for the
tokens whose K/V is missing: one while it decodes, a whole prompt when it is new, the rest of one when it was cut to the
budget. Decodes are served first, so that no prompt ever stalls a stream; prompts share what is left.

All sequences stand in one order, by arrival and priority. It decides who is admitted next, and who is preempted when
blocks run out: the last one. docs/scheduling.md says why, and why nobody waits for ever.

Knows sequences, counts and blocks. Must not know tensors, sockets or time.
"""

import bisect
import heapq
from collections.abc import Iterator

from engine.api import FinishReason, Overloaded
from engine.kv_cache import KVCacheManager
from engine.sequence import NO_ROW, SchedulerOutput, Sequence

# How many later requests of the next better priority may pass a waiting one: it stands behind at most that many.
PRIORITY_WEIGHT = 1024
# A prompt longer than what is left of the budget leaves this part of it to the prompts behind it, if they want it.
_SHARED_PART = 4
# One of so many blocks stays free at an admission, for the running sequences to grow into: benchmarks/watermark.py.
WATERMARK_PART = 32


class WaitingQueue:
    """Sequences that wait, in their order. Ended ones are removed late, so that ending one costs no search."""

    def __init__(self) -> None:
        self._heap: list[tuple[tuple[int, int, int], Sequence]] = []
        self._num_ended = 0

    def __len__(self) -> int:
        return len(self._heap) - self._num_ended

    def __iter__(self) -> Iterator[Sequence]:
        return (sequence for _, sequence in self._heap if sequence.finish_reason is None)

    def push(self, sequence: Sequence) -> None:
        """Add a sequence; no other may have its `order`."""
        heapq.heappush(self._heap, (sequence.order, sequence))

    def first(self) -> Sequence:
        """The next one. The queue must not be empty."""
        while self._heap[0][1].finish_reason is not None:
            heapq.heappop(self._heap)
            self._num_ended -= 1
        return self._heap[0][1]

    def pop(self) -> Sequence:
        """Take the next one out. The queue must not be empty."""
        sequence = self.first()
        heapq.heappop(self._heap)
        return sequence

    def note_ended(self) -> None:
        """A sequence that waits here has got its finish reason."""
        self._num_ended += 1
        # Half of them ended: sweeping now costs each one a constant.
        if 2 * self._num_ended > len(self._heap):
            self._heap = [entry for entry in self._heap if entry[1].finish_reason is None]
            heapq.heapify(self._heap)
            self._num_ended = 0


class Scheduler:
    """Holds every unfinished sequence, waiting or running."""

    def __init__(
        self,
        kv_cache: KVCacheManager,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_num_waiting: int,
        watermark_part: int = WATERMARK_PART,
    ) -> None:
        self.kv_cache = kv_cache
        self.num_preemptions = 0
        # Never more sequences than the budget has tokens: each one that decodes gets its token in every step.
        self.max_num_seqs = min(max_num_seqs, max_num_batched_tokens)
        self._max_num_batched_tokens = max_num_batched_tokens
        self._max_num_waiting = max_num_waiting
        self._num_watermark_blocks = -(-kv_cache.pool.num_usable_blocks // watermark_part)
        self._num_arrivals = 0
        self._waiting = WaitingQueue()
        self._running: list[Sequence] = []  # by `order`
        self._free_rows = list(range(self.max_num_seqs - 1, -1, -1))

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
        return bool(self._running or self._waiting)

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
        arrival = self._num_arrivals
        self._num_arrivals += 1
        for index, sequence in enumerate(sequences):
            rank = arrival + sequence.request.priority * PRIORITY_WEIGHT
            sequence.order = (rank, arrival, index)
            self._waiting.push(sequence)

    def schedule(self, num_in_flight: int = 0) -> SchedulerOutput:
        """The next step. Every scheduled token has its block, and every scheduled sequence its row.

        num_in_flight: steps that have been launched and not committed, 0 or 1. Of other steps that were not committed
        the blocks are forgotten.
        """
        self.kv_cache.begin_step(num_in_flight)
        num_preemptions = self.num_preemptions
        scheduled, prefilling = self._schedule_decodes()
        # After a preemption nobody is admitted: the blocks it won back are for those that run.
        may_admit = self.num_preemptions == num_preemptions
        num_decodes = len(scheduled)
        scheduled += self._schedule_prefills(prefilling, self._max_num_batched_tokens - num_decodes, may_admit)
        return SchedulerOutput(tuple(scheduled), num_decodes)

    def commit(self) -> None:
        """The oldest step has been computed: what it wrote may be found by those that come."""
        self.kv_cache.commit()

    def discard_uncommitted(self, num_in_flight: int) -> None:
        """All steps but the oldest `num_in_flight` have failed: nobody may find what they wrote."""
        self.kv_cache.discard_uncommitted(num_in_flight)

    def note_full_block(self, sequence: Sequence) -> None:
        """The sequence's last known token is the last of a block, which the step in flight may have been filling."""
        num_known = len(sequence.token_ids)
        # If not, the block gets its name when that token is scheduled.
        if sequence.num_computed_tokens == num_known:
            self.kv_cache.register(sequence, num_known - 1, num_known)

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """End an unfinished sequence: its blocks and its row are free at once."""
        sequence.finish_reason = reason
        if sequence.row == NO_ROW:
            self._waiting.note_ended()
        else:
            self._running.remove(sequence)
            self._release(sequence)

    def _schedule_decodes(self) -> tuple[list[tuple[Sequence, int]], list[Sequence]]:
        """One token for each running sequence that lacks only one; the other running ones."""
        scheduled: list[tuple[Sequence, int]] = []
        prefilling: list[Sequence] = []
        block_size = self.kv_cache.block_size
        last_offset = block_size - 1
        # A preemption only removes the last of the list, which this loop has not passed.
        for sequence in self._running:
            num_computed = sequence.num_computed_tokens
            num_pending = sequence.num_pending_tokens
            if len(sequence.token_ids) + num_pending - num_computed > 1:
                prefilling.append(sequence)
                continue
            # It ends with the pending token, whatever that is; or nobody can say yet how to sample the next one.
            if num_pending and (num_computed + 1 >= sequence.max_num_tokens or sequence.waits_for_tokens):
                continue
            offset = num_computed % block_size
            if offset == 0 and num_computed == len(sequence.block_ids) * block_size and not self._grow(sequence):
                break
            if offset == last_offset and not num_pending:
                self.kv_cache.register(sequence, num_computed, num_computed + 1)
            scheduled.append((sequence, 1))
        return scheduled, prefilling

    def _schedule_prefills(
        self, prefilling: list[Sequence], budget: int, may_admit: bool
    ) -> list[tuple[Sequence, int]]:
        """Chunks of the prompts that are under way, then of new ones, as far as the budget goes.

        There is a token for each row that does not decode, so the budget is not 0 where there is a prompt to compute.
        """
        chunks: list[tuple[Sequence, int]] = []
        least = 2 * self.kv_cache.block_size
        for sequence in self._prompts(prefilling, may_admit):
            num_tokens = sequence.num_uncomputed_tokens
            if num_tokens > budget:
                # Not down to crumbs: they cost a step as much as a chunk does.
                num_tokens = budget if budget <= least else budget - budget // _SHARED_PART
            chunks.append((sequence, num_tokens))
            first = sequence.num_computed_tokens
            self.kv_cache.register(sequence, first, first + num_tokens)
            budget -= num_tokens
            if not budget:
                break
        # What nobody behind wanted goes to the first that was cut.
        for index, (sequence, num_tokens) in enumerate(chunks):
            more = min(budget, sequence.num_uncomputed_tokens - num_tokens)
            if more:
                chunks[index] = (sequence, num_tokens + more)
                end = sequence.num_computed_tokens + num_tokens
                self.kv_cache.register(sequence, end, end + more)
                budget -= more
        return chunks

    def _prompts(self, prefilling: list[Sequence], may_admit: bool) -> Iterator[Sequence]:
        """The prompts to compute, in order; each new one is admitted when the caller comes to it.

        The blocks of a whole prompt are taken at its admission, so a half-computed prompt never waits for blocks.
        """
        for sequence in prefilling:
            self.kv_cache.catch_up(sequence)
            yield sequence
        while may_admit and self._waiting and self._free_rows:
            sequence = self._waiting.first()
            if sequence.num_pending_tokens:  # preempted, and the step behind it could not be launched
                return
            if not self.kv_cache.admit(sequence, self._num_watermark_blocks if self._running else 0):
                return
            self._waiting.pop()
            if not sequence.num_preemptions:
                sequence.num_cached_tokens = sequence.num_computed_tokens
            sequence.row = self._free_rows.pop()
            bisect.insort(self._running, sequence, key=lambda running: running.order)
            yield sequence

    def _grow(self, sequence: Sequence) -> bool:
        """Get the sequence its next block, if need be from the last ones in the order; False if that is itself."""
        while not self.kv_cache.grow(sequence):
            if self._preempt_last() is sequence:
                return False
        return True

    def _preempt_last(self) -> Sequence:
        victim = self._running.pop()
        self._release(victim)
        self._waiting.push(victim)
        victim.num_preemptions += 1
        self.num_preemptions += 1
        return victim

    def _release(self, sequence: Sequence) -> None:
        self.kv_cache.release(sequence)
        self._free_rows.append(sequence.row)
        sequence.row = NO_ROW
