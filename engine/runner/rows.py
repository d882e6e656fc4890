"""The running sequences' rows: what the device keeps of each between steps, and what the host knows of that.

A row is right if it holds what its sequence needs, whoever wrote it: rows are handed on, and a preempted sequence comes
back with other blocks. A block list belongs to one sequence, from one admission on, and only grows; so its identity and
length tell whether a row is current, and nothing has to be told to the runner.

Changes are (place, value) pairs of words, for one launch in front of the step. Must not know the model.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.runner.device import Device
from engine.runner.staging import Packet, Segment, padded
from engine.sampling import held_tokens, mask_words, sampling_words
from engine.sequence import Sequence
from engine.token_rules import TokenRules
from kernels import NUM_SAMPLING_COLUMNS, Kernels, RowState, SamplingColumn

Array = np.ndarray[Any, np.dtype[Any]]

NO_LOGPROBS = -1
NOWHERE = -1


class Rows:
    """One row per running sequence, two for warming up beside them, and a last one for padding: `null_row`.

    num_computed: int64 [rows], tokens whose K/V the steps so far compute. sampled_at: int64 [rows], the length at which
    the row sampled last, so that its next token is on the device; -1 where that is not its sequence's.
    temperature: float32 [rows]. num_logprobs: int32 [rows], -1 for none. has_rules: bool [rows]; rules: of each row.
    """

    def __init__(self, device: Device, max_num_seqs: int, max_blocks: int, vocab_size: int) -> None:
        self.spare_rows = (max_num_seqs, max_num_seqs + 1)
        self.null_row = max_num_seqs + 2
        num_rows = max_num_seqs + 3
        self.num_computed = np.zeros(num_rows, dtype=np.int64)
        self.sampled_at = np.full(num_rows, NOWHERE, dtype=np.int64)
        self.temperature = np.zeros(num_rows, dtype=np.float32)
        self.num_logprobs = np.full(num_rows, NO_LOGPROBS, dtype=np.int32)
        self.has_rules = np.zeros(num_rows, dtype=np.bool_)
        self.rules: list[TokenRules | None] = [None] * num_rows
        self.num_blocks = np.zeros(num_rows, dtype=np.int64)
        # The list that a row holds, kept alive so that no other can have its identity.
        self.held: list[list[int] | None] = [None] * num_rows
        self._owners: list[Sequence | None] = [None] * num_rows
        shapes = (max_blocks, 1, NUM_SAMPLING_COLUMNS, -(-vocab_size // 32))
        # Aligned, as the segments of a packet are, whatever the model's length: kernels are compiled for that.
        self._starts = np.cumsum([0, *(padded(num_rows * width) for width in shapes)]).tolist()
        self._widths = shapes
        # One run of words, so that one launch writes whatever has changed in any of them.
        self.words = zeros(device, self._starts[-1], torch.int32)
        parts = [
            self.words[start : start + num_rows * width].view(num_rows, width)
            for start, width in zip(self._starts, shapes, strict=False)
        ]
        counts = zeros(device, num_rows * vocab_size, torch.int32).view(num_rows, vocab_size)
        self.state = RowState(parts[0], parts[1].view(-1), parts[2], parts[3], counts)

    def table_words(self, sequence: Sequence) -> tuple[Array, Array]:
        """(places, values) of the blocks that the sequence's row lacks. The row is then current."""
        row, block_ids = sequence.row, sequence.block_ids
        first = int(self.num_blocks[row]) if self.held[row] is block_ids else 0
        self.held[row] = block_ids
        self.num_blocks[row] = len(block_ids)
        start = self._starts[0] + row * self._widths[0]
        return np.arange(start + first, start + len(block_ids)), np.array(block_ids[first:], dtype=np.int32)

    def takes(self, sequence: Sequence) -> bool:
        """Whether the row must get the sequence's parameters and counts, for it has another's.

        One that comes back to its own row finds there all that it has sampled counted, and its parameters never change.
        """
        return self._owners[sequence.row] is not sequence

    def parameter_words(self, sequence: Sequence, rules: TokenRules | None) -> list[tuple[Array, Array]]:
        """(places, values) of the sequence's parameters, whose row this is from now on."""
        row = sequence.row
        params = sequence.request.params
        words = sampling_words(sequence, rules)
        self._owners[row] = sequence
        self.rules[row] = rules
        self.has_rules[row] = rules is not None
        self.temperature[row] = words.view(np.float32)[SamplingColumn.TEMPERATURE]
        self.num_logprobs[row] = NO_LOGPROBS if params.logprobs is None else params.logprobs
        changes = [(self._places(2, row), words)]
        if rules is not None and rules.allowed is not None:
            changes.append((self._places(3, row), mask_words(rules)))
        return changes

    def _places(self, part: int, row: int) -> Array:
        start = self._starts[part] + row * self._widths[part]
        return np.arange(start, start + self._widths[part])


class Changes:
    """What a step changes in the rows before it computes: gathered on the host, applied on the device."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._places: list[Array] = []
        self._values: list[Array] = []
        self._counted: list[tuple[int, Array, Array]] = []
        self._words: tuple[Segment, Segment] | None = None
        self._counts: list[tuple[int, Segment, Segment]] = []

    def grow(self, sequence: Sequence) -> None:
        """The sequence has got more blocks."""
        places, values = self._rows.table_words(sequence)
        self._places.append(places)
        self._values.append(values)

    def take(self, sequence: Sequence, rules: TokenRules | None) -> None:
        """The row is the sequence's from now on."""
        for places, values in self._rows.parameter_words(sequence, rules):
            self._places.append(places)
            self._values.append(values)
        if sequence.request.params.has_penalties:
            self._counted.append((sequence.row, *held_tokens(sequence)))

    def pack(self, packet: Packet) -> None:
        """Put everything into the step's packet."""
        if self._places:
            self._words = packet.put(np.concatenate(self._places)), packet.put(np.concatenate(self._values))
        self._counts = [(row, packet.put(ids), packet.put(counts)) for row, ids, counts in self._counted]

    def apply(self, packet: Packet, kernels: Kernels) -> None:
        """On the device, once the packet is there."""
        if self._words is not None:
            places, values = (packet.on_device(segment) for segment in self._words)
            kernels.write_words(self._rows.words, places, values)
        for row, ids, counts in self._counts:
            held = self._rows.state.counts[row]
            held.zero_()
            if ids.num_words:
                kernels.write_words(held, packet.on_device(ids), packet.on_device(counts))


def zeros(device: Device, num_elements: int, dtype: torch.dtype) -> Tensor:
    """Zeros [num_elements]. On a CPU the pages cost neither time nor memory until they are first written.

    torch.zeros writes them all, which takes seconds and the whole of a cache's memory at start; numpy asks the system
    for pages of zeros.
    """
    if device.torch_device.type != "cpu":
        return torch.zeros(num_elements, dtype=dtype, device=device.torch_device)
    return torch.from_numpy(np.zeros(num_elements * dtype.itemsize, dtype=np.uint8)).view(dtype)
