"""The first launch of a step and the writes to the rows' state: `reference.expand_step` and `reference.write_words`.

Nothing is read on the host, and the grid depends on the number of sequences alone: in a CUDA graph the same tensors
serve every step. Must not know sequences or the engine.
"""

import functools
from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels import interface
from kernels.gpu.cases import CompileCase
from kernels.gpu.hardware import Hardware
from kernels.interface import NUM_SAMPLING_COLUMNS, RowState, SamplingColumn, StepInputs, StepTables

# Tokens, or blocks, of a sequence that its program writes at once: a prompt of 8192 tokens takes 8 rounds.
_RUN = 1024
_WORDS = 256

_TEMPERATURE = tl.constexpr(int(SamplingColumn.TEMPERATURE))
_TOP_P = tl.constexpr(int(SamplingColumn.TOP_P))
_MIN_P = tl.constexpr(int(SamplingColumn.MIN_P))
_TOP_K = tl.constexpr(int(SamplingColumn.TOP_K))
_SEED = tl.constexpr(int(SamplingColumn.SEED))
_REPETITION = tl.constexpr(int(SamplingColumn.REPETITION))
_FREQUENCY = tl.constexpr(int(SamplingColumn.FREQUENCY))
_PRESENCE = tl.constexpr(int(SamplingColumn.PRESENCE))
_FLAGS = tl.constexpr(int(SamplingColumn.FLAGS))
_NUM_COLUMNS = tl.constexpr(NUM_SAMPLING_COLUMNS)
_HAS_COUNTS = tl.constexpr(interface.HAS_COUNTS)
_HAS_MASK = tl.constexpr(interface.HAS_MASK)


@triton.jit
def _expand_sampling(columns_ptr, row, place, out):
    """The parameters of one row as those of the sampled row `place`; out: see `_sampled`."""
    tl.store(out[0] + place, tl.load(columns_ptr + _TEMPERATURE).to(tl.float32, bitcast=True))
    tl.store(out[1] + place, tl.load(columns_ptr + _TOP_K))
    tl.store(out[2] + place, tl.load(columns_ptr + _TOP_P).to(tl.float32, bitcast=True))
    tl.store(out[3] + place, tl.load(columns_ptr + _MIN_P).to(tl.float32, bitcast=True))
    low = tl.load(columns_ptr + _SEED).to(tl.uint32, bitcast=True).to(tl.uint64)
    high = tl.load(columns_ptr + _SEED + 1).to(tl.uint32, bitcast=True).to(tl.uint64)
    tl.store(out[4] + place, ((high << 32) | low).to(tl.int64, bitcast=True))
    tl.store(out[5] + place, tl.load(columns_ptr + _REPETITION).to(tl.float32, bitcast=True))
    tl.store(out[6] + place, tl.load(columns_ptr + _FREQUENCY).to(tl.float32, bitcast=True))
    tl.store(out[7] + place, tl.load(columns_ptr + _PRESENCE).to(tl.float32, bitcast=True))
    flags = tl.load(columns_ptr + _FLAGS)
    tl.store(out[8] + place, tl.where((flags & _HAS_MASK) != 0, row, -1))
    tl.store(out[9] + place, tl.where((flags & _HAS_COUNTS) != 0, row, -1))
    tl.store(out[10] + place, row)


@triton.jit(do_not_specialize=["row_blocks", "out_blocks"])
def _expand_step(
    tables, state, tokens_out, sampled_out, row_blocks, out_blocks, BLOCK_SIZE: tl.constexpr, RUN: tl.constexpr
):
    """One sequence. The tuples: the fields of `StepTables`; block table, last tokens and parameters of `RowState`;
    `_per_token` and `_sampled` of `StepInputs`. row_blocks, out_blocks: entries between the rows of the block tables.
    """
    sequence = tl.program_id(0)
    row = tl.load(tables[0] + sequence)
    start = tl.load(tables[1] + sequence)
    end = tl.load(tables[1] + sequence + 1)
    seq_len = tl.load(tables[2] + sequence)
    place = tl.load(tables[3] + sequence)
    blocks_ptr = state[0] + row.to(tl.int64) * row_blocks
    last_token = tl.load(state[1] + row)
    i = tl.arange(0, RUN)
    is_padding = seq_len == 0
    for first in range(start, end, RUN):
        token = first + i
        inside = token < end
        position = seq_len - end + token
        has_slot = inside & (not is_padding)
        token_id = tl.load(tables[4] + token, mask=has_slot, other=0)
        token_id = tl.where(token_id == -1, last_token, token_id)
        block = tl.load(blocks_ptr + position // BLOCK_SIZE, mask=has_slot, other=0)
        slot = block.to(tl.int64) * BLOCK_SIZE + position % BLOCK_SIZE
        tl.store(tokens_out[0] + token, token_id.to(tl.int64), mask=inside)
        tl.store(tokens_out[1] + token, tl.where(has_slot, position, 0).to(tl.int64), mask=inside)
        tl.store(tokens_out[2] + token, tl.where(has_slot, slot, -1), mask=inside)
    num_blocks = tl.cdiv(seq_len, BLOCK_SIZE)
    out_blocks_ptr = tokens_out[3] + sequence.to(tl.int64) * out_blocks
    for first in range(0, num_blocks, RUN):
        at = first + i
        blocks = tl.load(blocks_ptr + at, mask=at < num_blocks, other=0)
        tl.store(out_blocks_ptr + at, blocks, mask=at < num_blocks)
    if place >= 0:
        tl.store(tokens_out[4] + place, (end - 1).to(tl.int64))
        tl.store(tokens_out[5] + place, seq_len.to(tl.int64))
        _expand_sampling(state[2] + row.to(tl.int64) * _NUM_COLUMNS, row, place, sampled_out)


def _per_token(out: StepInputs) -> tuple[Tensor, ...]:
    """What follows from a sequence's tokens, in the order in which `_expand_step` counts."""
    return (
        out.input_ids, out.positions, out.slot_mapping, out.block_table, out.logits_indices, out.sample_positions,
    )  # fmt: skip


def _sampled(out: StepInputs) -> tuple[Tensor, ...]:
    """What follows from a row's parameters, in the order in which `_expand_sampling` counts."""
    return (
        out.temperature, out.top_k, out.top_p, out.min_p, out.seeds, out.repetition, out.frequency, out.presence,
        out.mask_row, out.count_slot, out.sample_rows,
    )  # fmt: skip


def expand_step(tables: StepTables, state: RowState, block_size: int, max_blocks: int, out: StepInputs) -> None:
    """See `reference.expand_step`; one launch. Every tensor is contiguous but the rows of `out.block_table`.

    Each sequence's own blocks are copied, read from its length on the device: `max_blocks`, which the host knows, would
    be another value in every step, so it is not used.
    """
    num_sequences = tables.rows.shape[0]
    if num_sequences == 0:
        return
    _expand_step[(num_sequences,)](
        (tables.rows, tables.query_start_loc, tables.seq_lens, tables.sample_places, tables.token_ids),
        (state.block_table, state.last_tokens, state.sampling),
        _per_token(out),
        _sampled(out),
        state.block_table.stride(0),
        out.block_table.stride(0),
        BLOCK_SIZE=block_size,
        RUN=_RUN,
        num_warps=4,
    )


# One row of the counts begins anywhere: of a vocabulary that is no multiple of 4, only each fourth row is aligned.
@triton.jit(do_not_specialize=["num_words"], do_not_specialize_on_alignment=["words_ptr", "places_ptr", "values_ptr"])
def _write_words(words_ptr, places_ptr, values_ptr, num_words, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = i < num_words
    places = tl.load(places_ptr + i, mask=inside, other=0)
    tl.store(words_ptr + places, tl.load(values_ptr + i, mask=inside, other=0).to(tl.int32), mask=inside)


def write_words(words: Tensor, places: Tensor, values: Tensor) -> None:
    """See `reference.write_words`; all contiguous, one launch, none for no places."""
    num_words = places.shape[0]
    if num_words:
        grid = (triton.cdiv(num_words, _WORDS),)
        _write_words[grid](words, places, values, num_words, BLOCK=_WORDS, num_warps=4)


def empty_step(
    num_sequences: int, num_tokens: int, max_blocks: int, num_rows: int, device: str | torch.device
) -> tuple[StepTables, RowState, StepInputs]:
    """Uninitialised tensors of the right types, for compiling: a step, `num_rows` rows, what the step makes of them."""

    def ints(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.int32, device=device)

    def longs(size: int) -> Tensor:
        return torch.empty(size, dtype=torch.int64, device=device)

    def floats() -> Tensor:
        return torch.empty(num_sequences, dtype=torch.float32, device=device)

    tables = StepTables(
        ints(num_sequences), ints(num_sequences + 1), ints(num_sequences), ints(num_sequences), ints(num_tokens)
    )
    state = RowState(
        ints(num_rows, max_blocks), ints(num_rows), ints(num_rows, NUM_SAMPLING_COLUMNS), ints(num_rows, 1),
        ints(num_rows, 32),
    )  # fmt: skip
    out = StepInputs(
        input_ids=longs(num_tokens),
        positions=longs(num_tokens),
        slot_mapping=longs(num_tokens),
        block_table=ints(num_sequences, max_blocks),
        logits_indices=longs(num_sequences),
        sample_rows=ints(num_sequences),
        temperature=floats(),
        top_k=ints(num_sequences),
        top_p=floats(),
        min_p=floats(),
        seeds=longs(num_sequences),
        sample_positions=longs(num_sequences),
        mask_row=ints(num_sequences),
        count_slot=ints(num_sequences),
        repetition=floats(),
        frequency=floats(),
        presence=floats(),
    )
    return tables, state, out


def compile_cases(hardware: Hardware) -> Iterator[CompileCase]:
    """A step in blocks of 32; words from the host, and sampled tokens."""
    tables, state, out = empty_step(8, 64, 128, 9, "meta")
    yield CompileCase("blocks of 32", functools.partial(expand_step, tables, state, 32, 128, out))
    for dtype in (torch.int32, torch.int64):
        values = torch.empty(8, dtype=dtype, device="meta")
        launch = functools.partial(write_words, state.last_tokens, tables.rows, values)
        yield CompileCase(str(dtype).removeprefix("torch."), launch)
