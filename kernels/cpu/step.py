"""What a step reads and leaves on the CPU: the launcher of native/step.c, and writes to the rows' state.

Must not know sequences.
"""

import ctypes

from torch import Tensor

from kernels.cpu.native import ExpandedStep, Native
from kernels.interface import RowState, StepInputs, StepTables


class ExpandStep:
    """See `reference.expand_step`; every tensor contiguous but `out.block_table`, whose rows may be strided."""

    def __init__(self, native: Native) -> None:
        self._native = native

    def __call__(self, tables: StepTables, state: RowState, block_size: int, max_blocks: int, out: StepInputs) -> None:
        """Some 10 us for 64 sequences of one token."""
        arguments = ExpandedStep(
            tables.rows.shape[0], block_size, max_blocks, state.block_table.stride(0), out.block_table.stride(0),
            tables.rows.data_ptr(), tables.query_start_loc.data_ptr(), tables.seq_lens.data_ptr(),
            tables.sample_places.data_ptr(), tables.token_ids.data_ptr(),
            state.block_table.data_ptr(), state.last_tokens.data_ptr(), state.sampling.data_ptr(),
            out.input_ids.data_ptr(), out.positions.data_ptr(), out.slot_mapping.data_ptr(),
            out.block_table.data_ptr(), out.logits_indices.data_ptr(), out.sample_rows.data_ptr(),
            out.temperature.data_ptr(), out.top_k.data_ptr(), out.top_p.data_ptr(), out.min_p.data_ptr(),
            out.seeds.data_ptr(), out.sample_positions.data_ptr(), out.mask_row.data_ptr(),
            out.count_slot.data_ptr(), out.repetition.data_ptr(), out.frequency.data_ptr(), out.presence.data_ptr(),
        )  # fmt: skip
        self._native.expand_step(ctypes.byref(arguments))


def write_words(words: Tensor, places: Tensor, values: Tensor) -> None:
    """See `reference.write_words`. By numpy, which indexes in a tenth of torch's time."""
    words.numpy()[places.numpy()] = values.numpy()


def count_tokens(counts: Tensor, slots: Tensor, token_ids: Tensor) -> None:
    """See `reference.count_tokens`."""
    at = slots.numpy()
    is_counted = at >= 0
    if is_counted.any():
        counts.numpy()[at[is_counted], token_ids.numpy()[is_counted]] += 2
