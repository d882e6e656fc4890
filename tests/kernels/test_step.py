"""What a step's tables and rows become, by hand, and the CPU's form against the reference."""

import dataclasses
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import HAS_COUNTS, HAS_MASK, Kernels, RowState, StepTables, for_device
from kernels.reference import ReferenceKernels
from tests.kernels.steps import GARBAGE, RAGGED, Step, assert_same, random_step, staged, untouched

CPU, REFERENCE = for_device(torch.device("cpu")), ReferenceKernels()
both = pytest.mark.parametrize("kernels", [CPU, REFERENCE], ids=["cpu", "reference"])


def bits(value: float) -> int:
    """The float32's, as an int32."""
    return int(struct.unpack("<i", struct.pack("<f", value))[0])


def by_hand() -> Step:
    """A decode that goes on from its last token, a chunk that is not sampled, a prompt of two, padding; blocks of 4."""
    rows, starts, seq_lens = [2, 0, 1, 3], [0, 1, 4, 6, 7], [9, 6, 2, 0]
    table = torch.full((4, 5), GARBAGE, dtype=torch.int32)
    table[2, :3] = torch.tensor([7, 3, 9])
    table[0, :2] = torch.tensor([4, 6])
    table[1, :1] = 8
    sampling = [[bits(0.0), bits(1.0), bits(0.0), 0, 0, 0, bits(1.0), 0, 0, 0] for _ in range(4)]
    low, high = 0x80000001 - 2**32, 0x7FFFFFF0
    sampling[2] = [bits(0.7), bits(0.9), bits(0.05), 40, low, high, bits(1.5), bits(-0.25), bits(0.5), HAS_COUNTS]
    sampling[1][4:6], sampling[1][9] = [5, -1], HAS_COUNTS | HAS_MASK
    state = RowState(
        table,
        torch.tensor([10, 11, 12, 13], dtype=torch.int32),
        torch.tensor(sampling, dtype=torch.int32),
        torch.zeros(4, 1, dtype=torch.int32),
        torch.zeros(4, 20, dtype=torch.int32),
    )
    columns = [rows, starts, seq_lens, [1, -1, 0, 2], [-1, 21, 22, 23, 31, 32, 99]]
    tables = StepTables(*staged([torch.tensor(column, dtype=torch.int32) for column in columns]))
    return Step(tables, state, 4, 3)


@both
def test_a_step_by_hand(kernels: Kernels) -> None:
    step = by_hand()
    out = untouched(step, spare=1)
    kernels.expand_step(step.tables, step.state, step.block_size, step.max_blocks, out)
    assert out.input_ids.tolist() == [12, 21, 22, 23, 31, 32, 0, -77]
    assert out.positions.tolist() == [8, 3, 4, 5, 0, 1, 0, -77]
    assert out.slot_mapping.tolist() == [36, 19, 24, 25, 32, 33, -1, -77]
    assert out.block_table[0, :3].tolist() == [7, 3, 9]
    assert out.block_table[1, :2].tolist() == [4, 6]
    assert out.block_table[2, :1].tolist() == [8]
    assert out.logits_indices.tolist() == [5, 0, 6, -77, -77]
    assert out.sample_rows.tolist() == [1, 2, 3, -77, -77]
    assert out.sample_positions.tolist() == [2, 9, 0, -77, -77]
    assert out.seeds.tolist() == [-(2**32) + 5, 0x7FFFFFF080000001, 0, -77, -77]
    assert out.top_k.tolist() == [0, 40, 0, -77, -77]
    assert out.mask_row.tolist() == [1, -1, -1, -77, -77]
    assert out.count_slot.tolist() == [1, 2, -1, -77, -77]
    second = torch.stack([getattr(out, name)[1] for name in ("temperature", "top_p", "min_p")])
    assert torch.equal(second, torch.tensor([0.7, 0.9, 0.05]))
    second = torch.stack([getattr(out, name)[1] for name in ("repetition", "frequency", "presence")])
    assert torch.equal(second, torch.tensor([1.5, -0.25, 0.5]))
    assert out.temperature[2] == 0, "padding is greedy"


def expanded(kernels: Kernels, step: Step):
    out = untouched(step)
    before = dataclasses.replace(step.state, **{f.name: getattr(step.state, f.name).clone() for f in FIELDS})
    kernels.expand_step(step.tables, step.state, step.block_size, step.max_blocks, out)
    for field in FIELDS:
        assert torch.equal(getattr(step.state, field.name), getattr(before, field.name)), "the rows are only read"
    return out


FIELDS = dataclasses.fields(RowState)


@given(
    lens=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 90)), min_size=1, max_size=12),
    seed=st.integers(0, 1000),
    block_size=st.sampled_from([1, 16, 32, 48]),
)
@settings(max_examples=60, deadline=None)
def test_the_cpu_writes_what_the_reference_writes(lens: list[tuple[int, int]], seed: int, block_size: int) -> None:
    ragged = [(num_queries if past else 1, num_queries + past - 1 if past else 0) for num_queries, past in lens]
    step = random_step(ragged, seed=seed, block_size=block_size, table_width=140, num_rows=15)
    assert_same(expanded(CPU, step), expanded(REFERENCE, step))


def test_a_table_that_is_a_slice_of_a_wider_buffer() -> None:
    step = random_step(RAGGED, seed=3)
    expected = expanded(REFERENCE, step)
    wide = torch.full((len(expected.block_table), 64), -77, dtype=torch.int32)
    out = dataclasses.replace(untouched(step), block_table=wide[:, :40])
    CPU.expand_step(step.tables, step.state, step.block_size, step.max_blocks, out)
    assert_same(out, expected)
    assert (wide[:, 40:] == -77).all()


@both
def test_words_are_written_where_they_belong(kernels: Kernels) -> None:
    words = torch.arange(50, dtype=torch.int32).view(5, 10)
    places = torch.tensor([3, 49, 10, 3], dtype=torch.int32)
    kernels.write_words(words.view(-1), places, torch.tensor([-5, 2**31 - 1, 7, -5], dtype=torch.int32))
    expected = list(range(50))
    expected[3], expected[49], expected[10] = -5, 2**31 - 1, 7
    assert words.flatten().tolist() == expected
    # Sampled tokens are int64.
    kernels.write_words(words[0], torch.tensor([0, 9], dtype=torch.int32), torch.tensor([151935, 4]))
    assert words[0].tolist() == [151935, 1, 2, -5, 4, 5, 6, 7, 8, 4]
    kernels.write_words(words.view(-1), places[:0], places[:0])
    assert words[4, 9] == 2**31 - 1


@both
def test_output_tokens_are_counted(kernels: Kernels) -> None:
    counts = torch.tensor([[0, 1, 2], [3, 4, 5], [6, 7, 8]], dtype=torch.int32)
    kernels.count_tokens(counts, torch.tensor([2, -1, 0], dtype=torch.int32), torch.tensor([1, 1, 0]))
    assert counts.tolist() == [[2, 1, 2], [3, 4, 5], [6, 9, 8]]
    kernels.count_tokens(counts, torch.tensor([-1], dtype=torch.int32), torch.tensor([2]))
    kernels.count_tokens(counts, torch.tensor([], dtype=torch.int32), torch.tensor([], dtype=torch.int64))
    assert counts.tolist() == [[2, 1, 2], [3, 4, 5], [6, 9, 8]]
