"""The runner's rows and blocks: handed on, preempted, mixed; and the sizes and refusals of `load_runner`."""

import math

import pytest
import torch

from engine.api import EngineConfig, SamplingParams
from engine.loading.source import Progress
from engine.runner import load_runner
from engine.sequence import SchedulerOutput
from tests.model.driver import Driver, make_sequence
from tests.model.tiny_models import make_llama, make_qwen3

BLOCK_SIZE = 16


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("llama")
    make_llama(path)
    return path


@pytest.fixture(scope="module")
def runner(model_dir):
    config = EngineConfig(model=str(model_dir), dtype="float32", block_size=BLOCK_SIZE, max_num_seqs=4)
    return load_runner(config, lambda stage: None)[0]


def alone(runner, prompt, num_new, **kwargs):
    return Driver(runner, BLOCK_SIZE).generate([make_sequence(prompt, **kwargs)], num_new)[0]


def test_a_preempted_sequence_goes_on_as_if_nothing_had_happened(runner):
    prompts = [list(range(3, 33)), list(range(40, 50))]
    expected = [alone(runner, prompt, 20) for prompt in prompts]
    driver = Driver(runner, BLOCK_SIZE)
    first, second = (make_sequence(prompt, row) for row, prompt in enumerate(prompts))
    for _ in range(8):
        driver.step([first, second])
    # Preempted, and back in its old row with the same number of blocks, the first of them the same and others not.
    old = first.block_ids
    driver.release(first)
    first.block_ids = [old[0], *reversed(driver.free[: len(old) - 1])]
    driver.free = [block for block in driver.free if block not in first.block_ids]
    assert len(first.block_ids) == len(old) and first.block_ids != old
    for _ in range(5):
        driver.step([first, second])
    # Preempted again, and back in another's row while that one takes its own.
    driver.release(first)
    first.row, second.row = second.row, first.row
    assert driver.generate([first, second], 20) == expected


def test_a_row_goes_to_the_next_sequence(runner):
    expected = [alone(runner, [5 + i, 9, 11 + i], 5) for i in range(4)]
    driver = Driver(runner, BLOCK_SIZE)
    for i in range(4):
        assert driver.generate([make_sequence([5 + i, 9, 11 + i], row=2)], 5) == [expected[i]]


def test_a_seed_gives_the_same_tokens_in_any_company(runner):
    params = SamplingParams(temperature=0.9, top_p=0.95, top_k=20)
    prompts = [[7, 8, 9], list(range(10, 45)), [3], [60, 61]]
    expected = [alone(runner, p, 15, params=params, seed=i - 2**63) for i, p in enumerate(prompts)]
    sequences = [make_sequence(p, row=3 - i, params=params, seed=i - 2**63) for i, p in enumerate(prompts)]
    assert Driver(runner, BLOCK_SIZE, budget=9).generate(sequences, 15) == expected
    assert alone(runner, prompts[0], 15, params=params, seed=99) != expected[0]


def test_greedy_and_sampled_rows_mix(runner):
    sampled = SamplingParams(temperature=1.0)
    greedy = alone(runner, [4, 5, 6], 10)
    drawn = alone(runner, [4, 5, 6], 10, params=sampled, seed=3)
    assert greedy != drawn
    pair = [make_sequence([4, 5, 6], 0), make_sequence([4, 5, 6], 1, params=sampled, seed=3)]
    assert Driver(runner, BLOCK_SIZE).generate(pair, 10) == [greedy, drawn]


def test_an_empty_step_and_one_that_samples_nothing(runner):
    assert list(runner.collect(runner.launch(SchedulerOutput(()))).token_ids) == []
    driver = Driver(runner, BLOCK_SIZE, budget=3)
    sequence = make_sequence([4, 5, 6, 7, 8])
    assert driver.step([sequence]) == {sequence: []}
    assert len(driver.step([sequence])[sequence]) == 1


def load(path, **settings):
    return load_runner(EngineConfig(model=str(path), **settings), lambda stage: None)


@pytest.mark.cpu_only("the size of the CPU's own cache")
def test_info_and_stages(model_dir, monkeypatch):
    stages = []
    monkeypatch.setattr(Progress.__init__, "__defaults__", (0.0,))  # every tensor, for so small a model
    config = EngineConfig(model=str(model_dir), max_num_seqs=3, max_model_len=100, served_model_name="tiny")
    runner, info = load_runner(config, stages.append)
    assert "loading weights" in stages and stages[-1] == "warming up"
    assert "loading weights: 0.0 of 0.0 GB" in stages
    assert (info.served_name, info.vocab_size, info.max_model_len, info.eos_token_ids) == ("tiny", 96, 100, (2,))
    assert info.model_dir == str(model_dir)
    assert runner.num_blocks == 3 * math.ceil(100 / 32) + 1
    assert load(model_dir)[1].served_name == model_dir.name


def test_cache_memory_bounds_the_blocks_and_the_length(model_dir):
    # 2 layers, K and V, 16 tokens, 2 heads of 16, 4 bytes.
    block_gib = 2 * 2 * 16 * 2 * 16 * 4 / 2**30
    runner, info = load(model_dir, block_size=16, kv_cache_memory_gib=5.5 * block_gib)
    assert runner.num_blocks == 5
    assert info.max_model_len == 4 * 16
    assert len(alone(runner, list(range(3, 60)), 7)) == 7
    assert load(model_dir, block_size=16, kv_cache_memory_gib=5.5 * block_gib, max_model_len=64)[1].max_model_len == 64
    with pytest.raises(ValueError, match="holds 64 tokens, but max_model_len is 65"):
        load(model_dir, block_size=16, kv_cache_memory_gib=5.5 * block_gib, max_model_len=65)
    with pytest.raises(ValueError, match="does not hold a single block"):
        load(model_dir, block_size=16, kv_cache_memory_gib=1.5 * block_gib)


def test_more_than_the_model_has_is_refused(model_dir):
    with pytest.raises(ValueError, match="max_model_len 257 is more than the model's max_position_embeddings 256"):
        load(model_dir, max_model_len=257)
    with pytest.raises(ValueError, match="does not exist"):
        load(model_dir / "nothing")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_each_dtype_generates(tmp_path, dtype):
    reference = make_qwen3(tmp_path)
    runner, _ = load(tmp_path, dtype=dtype, block_size=BLOCK_SIZE)
    tokens = alone(runner, [9, 8, 7, 6], 1)
    logits = reference(torch.tensor([[9, 8, 7, 6]])).logits[0, -1]
    # The types round, so only a clear winner must win.
    assert logits[tokens[0]] > logits.max() - 0.25


def test_what_the_machine_has_no_memory_for_is_refused_in_one_line(model_dir):
    with pytest.raises(ValueError, match=r"memory of the machine is full.*kv_cache_memory_gib") as caught:
        load(model_dir, kv_cache_memory_gib=2.0**20)
    assert "\n" not in str(caught.value)
