"""The decode step in graphs: to how many sequences a step is padded, and what is recorded for each of these sizes.

Two graphs per size: from the step's tables to hidden states, and from those to tokens. A step whose logits somebody
edits or asks about takes the first one only. Must not know sequences.
"""

import dataclasses
import functools
import gc
import itertools
import logging
import time
from collections.abc import Callable

from torch import Tensor

from engine.runner.device import Device, Graph

_log = logging.getLogger(__name__)


def bucket_sizes(max_num_seqs: int) -> tuple[int, ...]:
    """The sizes of decode steps that are recorded, ascending, the last being `max_num_seqs` or 512 if that is less.

    Dense where a step is short: padding costs what a row more costs, next to nothing while the weights are the limit.
    """
    largest = min(max_num_seqs, 512)
    sizes = itertools.chain((1, 2, 4), range(8, 64, 8), range(64, 256, 16), range(256, 513, 32))
    return (*(size for size in sizes if size < largest), largest)


@dataclasses.dataclass(frozen=True, slots=True)
class DecodeGraph:
    """A decode step of one size. hidden: [size, hidden_size], and tokens: int64 [size], are written by the replays."""

    forward: Graph
    hidden: Tensor
    sample: Graph
    tokens: Tensor


class DecodeGraphs:
    """The graphs of all sizes."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._graphs: dict[int, DecodeGraph] = {}
        self._buckets: list[int | None] = [None]

    def bucket_of(self, num_seqs: int) -> int | None:
        """The least recorded size that holds `num_seqs` sequences; None if there is none."""
        return self._buckets[num_seqs] if num_seqs < len(self._buckets) else None

    def __getitem__(self, size: int) -> DecodeGraph:
        return self._graphs[size]

    def __len__(self) -> int:
        return len(self._graphs)

    def capture(
        self,
        sizes: tuple[int, ...],
        prepare: Callable[[int], None],
        forward: Callable[[int], Tensor],
        sample: Callable[[int, Tensor], Tensor],
    ) -> None:
        """Record each size: `forward`, from a size to hidden states, and `sample`, from those to tokens.

        prepare: puts on the device what a step of that size reads. The others run once before they are recorded, for a
        kernel's first launch loads it, which a graph cannot hold. The largest size first, so that the smaller ones find
        its memory in the pool.
        """
        started = time.monotonic()
        # A collection in the midst of a recording takes seconds, and may free what belongs to another graph.
        gc.collect()
        gc.freeze()
        try:
            for size in sorted(sizes, reverse=True):
                prepare(size)
                sample(size, forward(size))
                forward_graph, hidden = self._device.capture(functools.partial(forward, size))
                sample_graph, tokens = self._device.capture(functools.partial(sample, size, hidden))
                self._graphs[size] = DecodeGraph(forward_graph, hidden, sample_graph, tokens)
        finally:
            gc.unfreeze()
            gc.collect()
        ascending = sorted(self._graphs)
        self._buckets = [None] + [size for low, size in itertools.pairwise([0, *ascending]) for _ in range(size - low)]
        _log.info("recorded %d sizes of the decode step in %.1f s", len(sizes), time.monotonic() - started)
