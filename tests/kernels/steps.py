"""Random steps as the engine's runner hands them over: tables in one staging buffer, rows with holes, many sizes."""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from kernels import HAS_COUNTS, HAS_MASK, RowState, StepInputs, StepTables

GARBAGE = 2**30 + 12345
_ALIGNMENT = 32  # ints


@dataclasses.dataclass(frozen=True)
class Step:
    """What `expand_step` takes."""

    tables: StepTables
    state: RowState
    block_size: int
    max_blocks: int


def staged(columns: list[Tensor]) -> list[Tensor]:
    """The columns as slices of one int32 buffer, each aligned, with garbage between them."""
    starts = [0]
    for column in columns:
        starts.append(-(-(starts[-1] + len(column)) // _ALIGNMENT) * _ALIGNMENT)
    buffer = torch.full((starts[-1] + _ALIGNMENT,), GARBAGE, dtype=torch.int32)
    slices = [buffer[start : start + len(column)] for start, column in zip(starts, columns, strict=False)]
    for slice_, column in zip(slices, columns, strict=True):
        slice_.copy_(column)
    return slices


def random_step(
    lens: list[tuple[int, int]], *, seed: int = 0, block_size: int = 16, table_width: int = 40, num_rows: int = 0
) -> Step:
    """lens: (query length, sequence length) each; (1, 0) is padding. About half of the others are sampled.

    Rows are dealt at random, block tables hold garbage past a sequence's blocks, about a third of the tokens are -1.
    """
    generator = torch.Generator().manual_seed(seed)

    def ints(low: int, high: int, *shape: int) -> Tensor:
        return torch.randint(low, high, shape, generator=generator, dtype=torch.int32)

    num_rows = max(num_rows, len(lens)) + 1
    rows = torch.randperm(num_rows - 1, generator=generator)[: len(lens)].to(torch.int32)
    is_sampled = ints(0, 2, len(lens)) == 1
    for i, (_, seq_len) in enumerate(lens):
        if seq_len == 0:
            rows[i], is_sampled[i] = num_rows - 1, True
    places = torch.full((len(lens),), -1, dtype=torch.int32)
    # In any order: the runner may sample some sequences before others.
    places[is_sampled] = torch.randperm(int(is_sampled.sum()), generator=generator).to(torch.int32)
    starts = torch.tensor([0, *(query_len for query_len, _ in lens)]).cumsum(0).to(torch.int32)
    token_ids = ints(0, 2**31 - 1, int(starts[-1]))
    token_ids[ints(0, 3, len(token_ids)) == 0] = -1
    table = torch.full((num_rows, table_width), GARBAGE, dtype=torch.int32)
    for row, (_, seq_len) in zip(rows.tolist(), lens, strict=True):
        num_blocks = -(-seq_len // block_size)
        table[row, :num_blocks] = ints(0, 2**27, num_blocks)
    floats = torch.rand(num_rows, 10, generator=generator)
    sampling = floats.view(torch.int32).clone()
    sampling[:, 3:6] = ints(-(2**31), 2**31 - 1, num_rows, 3)
    sampling[:, 9] = ints(0, 4, num_rows) * HAS_COUNTS
    assert HAS_COUNTS | HAS_MASK == 3
    state = RowState(table, ints(0, 2**31 - 1, num_rows), sampling, ints(0, 9, num_rows, 1), ints(0, 9, num_rows, 7))
    seq_lens = torch.tensor([seq_len for _, seq_len in lens], dtype=torch.int32)
    tables = StepTables(*staged([rows, starts, seq_lens, places, token_ids]))
    return Step(tables, state, block_size, max(-(-seq_len // block_size) for _, seq_len in lens))


def untouched(step: Step, *, spare: int = 3) -> StepInputs:
    """Buffers for the step and for `spare` entries more, full of one value that shows what was not written."""
    num_tokens, num_seqs = len(step.tables.token_ids) + spare, len(step.tables.rows) + spare
    sizes = {"input_ids": num_tokens, "positions": num_tokens, "slot_mapping": num_tokens}
    longs = {"input_ids", "positions", "slot_mapping", "logits_indices", "seeds", "sample_positions"}
    floats = {"temperature", "top_p", "min_p", "repetition", "frequency", "presence"}
    columns = {}
    for field in dataclasses.fields(StepInputs):
        name = field.name
        dtype = torch.int64 if name in longs else torch.float32 if name in floats else torch.int32
        shape = (num_seqs, step.state.block_table.shape[1]) if name == "block_table" else (sizes.get(name, num_seqs),)
        columns[name] = torch.full(shape, -77, dtype=dtype)
    return StepInputs(**columns)


def on(value: Any, device: torch.device) -> Any:
    """A dataclass of tensors, on the device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return dataclasses.replace(value, **{field.name: on(getattr(value, field.name), device) for field in fields})
    return value


def assert_same(found: StepInputs, expected: StepInputs) -> None:
    """Every entry of every field, those that nobody wrote included; floats by their bits."""
    for field in dataclasses.fields(StepInputs):
        ours, theirs = getattr(found, field.name).cpu(), getattr(expected, field.name)
        assert ours.dtype == theirs.dtype, field.name
        if ours.is_floating_point():
            ours, theirs = ours.view(torch.int32), theirs.view(torch.int32)
        assert torch.equal(ours, theirs), (field.name, ours, theirs)


# Decodes, prompts, chunks with a past, padding; lengths on a block's boundary and beside it.
RAGGED = [(1, 17), (5, 5), (1, 1), (7, 40), (1, 16), (16, 32), (1, 0), (1, 300), (33, 600), (1, 0)]
