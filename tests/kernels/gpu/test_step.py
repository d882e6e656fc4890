"""Expanding a step and writing words in Triton equal the reference, entry for entry, and need one binary each."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kernels import reference
from kernels.gpu.step import _RUN, _WORDS, expand_step, write_words
from kernels.interface import StepInputs
from tests.kernels.steps import RAGGED, Step, assert_same, on, random_step, untouched


def expected(step: Step) -> StepInputs:
    out = untouched(step)
    reference.expand_step(step.tables, step.state, step.block_size, step.max_blocks, out)
    return out


def found(step: Step, device: torch.device) -> StepInputs:
    out = on(untouched(step), device)
    expand_step(on(step.tables, device), on(step.state, device), step.block_size, step.max_blocks, out)
    return out


@pytest.mark.parametrize("seed", range(4))
def test_ragged_steps(device: torch.device, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(RAGGED), generator=generator).tolist()
    step = random_step([RAGGED[i] for i in order], seed=seed, num_rows=len(RAGGED) + seed)
    assert_same(found(step, device), expected(step))


@pytest.mark.parametrize("block_size", [16, 48, 128])
def test_a_prompt_and_a_table_of_several_runs(device: torch.device, block_size: int) -> None:
    lens = [(1, (_RUN + 2) * 16), (2 * _RUN + 1, 2 * _RUN + 7), (_RUN, _RUN), (1, 0)]
    step = random_step(lens, seed=block_size, block_size=block_size, table_width=_RUN + 6)
    assert_same(found(step, device), expected(step))


@pytest.mark.parametrize("num_padding", [0, 1, 5])
def test_a_graph_of_decodes(device: torch.device, num_padding: int) -> None:
    """As captured: every sequence is sampled, in order, and what pads the batch has the state's last row."""
    step = random_step([(1, 5), (1, 33), (1, 1)] + [(1, 0)] * num_padding, seed=num_padding)
    places = torch.arange(3 + num_padding, dtype=torch.int32)
    step = dataclasses.replace(step, tables=dataclasses.replace(step.tables, sample_places=places))
    result = found(step, device)
    assert_same(result, expected(step))
    assert result.sample_rows[3 : 3 + num_padding].tolist() == [3 + num_padding] * num_padding


def test_parameters_keep_their_bits(device: torch.device) -> None:
    """NaN, -0 and denormal floats, and both halves of a seed."""
    step = random_step([(1, 1), (1, 2)], seed=1)
    words = [-1, 1, -(2**31), 2**31 - 1, 0, 0x7FC00001]
    step.state.sampling[0, :10] = torch.tensor([*words, 1, -(2**31), 7, 3], dtype=torch.int32)
    step.state.sampling[1, :10] = torch.tensor([*reversed(words), 1, -1, 9, 0], dtype=torch.int32)
    step = dataclasses.replace(
        step, tables=dataclasses.replace(step.tables, sample_places=torch.tensor([1, 0], dtype=torch.int32))
    )
    assert_same(found(step, device), expected(step))


@pytest.mark.parametrize("num_places", [1, 3, _WORDS, _WORDS + 1])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_words(device: torch.device, num_places: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(num_places)
    places = torch.randperm(2000, generator=generator)[:num_places].to(torch.int32)
    places = torch.cat((places, places[:1]))
    values = torch.randint(-(2**31), 2**31 - 1, (num_places,), generator=generator)
    values = torch.cat((values, values[:1])).to(dtype)
    words = torch.arange(2000, dtype=torch.int32)
    there = words.to(device)
    write_words(there, places.to(device), values.to(device))
    write_words(there, places[:0].to(device), values[:0].to(device))
    reference.write_words(words, places, values)
    assert torch.equal(there.cpu(), words)


SCRIPT = """
import json, torch
from kernels.gpu.ahead_of_time import compile_cases
from kernels.gpu.cases import CompileCase
from kernels.gpu.hardware import KNOWN
from kernels.gpu.step import empty_step, expand_step, write_words

STAGING = torch.empty(1 << 20, dtype=torch.int32, device="meta")

def launch(num_sequences, num_tokens, max_blocks):
    tables, state, out = empty_step(num_sequences, num_tokens, max_blocks, 257, "meta")
    expand_step(tables, state, 32, max_blocks - num_sequences % 3, out)
    places = STAGING[32 * num_sequences :][:num_tokens]
    write_words(state.block_table.view(-1), places, STAGING[:num_tokens])
    write_words(state.last_tokens, out.sample_rows[1 : 1 + num_sequences], out.seeds[num_sequences // 2 :])

sizes = [(n, t, b) for n in (1, 2, 15, 16, 17, 256) for t in (n, 8192) for b in (1, 16, 33, 4096)]
# One name for all: a binary is then told apart by its machine code alone.
cases = (CompileCase("all", lambda size=size: launch(*size)) for size in sizes)
print(json.dumps(sorted(binary.kernel for binary in compile_cases(90, cases))))
"""


def test_one_binary_per_kernel_whatever_the_step(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[3])}
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False, timeout=250
    )
    assert result.returncode == 0, result.stderr
    # Words from the host are int32, sampled tokens int64.
    assert json.loads(result.stdout) == ["_expand_step", "_write_words", "_write_words"]
