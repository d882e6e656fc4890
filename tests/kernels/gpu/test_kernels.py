"""The Triton kernels together are a complete `Kernels`: a whole model runs on them and samples the same tokens."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kernels import AttentionForm, AttentionHeads, AttentionMetadata, Kernels
from kernels.gpu.hardware import Hardware
from kernels.gpu.kernels import TritonKernels
from kernels.reference import ReferenceKernels
from tests.kernels.gpu.conftest import HAS_GPU
from tests.kernels.oracle import relative_error

pytest.importorskip("msgspec")

from engine.api import SamplingParams
from engine.loading import read_model_config
from engine.runner import ModelRunner
from engine.runner.model_runner import RunnerLimits
from engine.runner.start import load_model
from tests.model.driver import Driver, make_sequence
from tests.model.tiny_models import make_llama, make_qwen3

BLOCK_SIZE = 16


def runner_of(directory: Path, kernels: Kernels) -> ModelRunner:
    config = read_model_config(directory)
    limits = RunnerLimits(num_blocks=24, block_size=BLOCK_SIZE, max_num_seqs=4, max_model_len=128)
    model = load_model(directory, config, torch.float32, kernels)
    return ModelRunner(model, kernels, config, torch.float32, limits)


@pytest.mark.skipif(HAS_GPU, reason="the runner does not know devices yet")
@pytest.mark.parametrize("make", [make_llama, make_qwen3])
def test_a_model_samples_the_same_tokens(tmp_path: Path, hardware: Hardware, make: Callable[[Path], object]) -> None:
    """Prompts of several lengths, computed in chunks beside decodes, greedy and sampled under every filter and edit."""
    make(tmp_path)
    params = [
        SamplingParams(temperature=0.0),
        SamplingParams(temperature=1.0, top_k=20, top_p=0.9, min_p=0.01, seed=3),
        SamplingParams(temperature=0.7, seed=4, repetition_penalty=1.2, frequency_penalty=0.3, presence_penalty=0.2),
        SamplingParams(temperature=1.2, seed=5, logit_bias={7: 3.0, 9: -50.0}, allowed_token_ids=tuple(range(3, 60))),
    ]
    found = []
    for kernels in (TritonKernels(hardware), ReferenceKernels()):
        driver = Driver(runner_of(tmp_path, kernels), BLOCK_SIZE, budget=24)
        sequences = [
            make_sequence([3 + (7 * row + i) % 90 for i in range(length)], row, one)
            for row, (length, one) in enumerate(zip((1, 16, 33, 5), params, strict=True))
        ]
        found.append(driver.generate(sequences, 4))
    assert found[0] == found[1]


def test_decodes_and_prompts_of_one_batch_are_written_side_by_side(device: torch.device, hardware: Hardware) -> None:
    kernels, generator = TritonKernels(hardware), torch.Generator().manual_seed(0)
    heads = AttentionHeads(4, 2, 16, None, None, 0.0)
    lens = [(1, 1), (1, 20), (5, 21), (1, 7), (16, 16)]
    metadata = AttentionMetadata(
        slot_mapping=torch.arange(16, 16 + 64, device=device),
        query_start_loc=torch.tensor([0, 1, 2, 7, 8, 24], dtype=torch.int32, device=device),
        seq_lens=torch.tensor([seq_len for _, seq_len in lens], dtype=torch.int32, device=device),
        block_table=torch.tensor([[3, 0], [1, 4], [2, 3], [4, 0], [1, 0]], dtype=torch.int32, device=device),
        max_query_len=16,
        max_seq_len=21,
        num_decodes=2,
    )
    qkv = torch.randn(64, 8 * 16, generator=generator).to(device)
    tables = kernels.rope_tables(torch.arange(64, device=device), torch.ones(8, device=device) * 0.1, 1.0)
    results = []
    for candidate in (kernels, ReferenceKernels()):
        cache = tuple(torch.zeros(shape, device=device) for shape in candidate.kv_cache_shapes(5, 16, 2, 16))
        query = candidate.pack_heads(heads)(qkv.clone(), tables, cache, metadata.slot_mapping)[:24]
        plan = candidate.plan_attention(metadata)
        results.append(candidate.paged_attention(query, *cache, plan, AttentionForm(0.25)))
    assert relative_error(*results) < 1e-5


def test_columns_of_a_gathered_table_are_read_with_their_stride(device: torch.device, hardware: Hardware) -> None:
    """What the engine gathers per row or token may be a column of a wider array."""
    kernels, generator = TritonKernels(hardware), torch.Generator().manual_seed(1)
    columns = torch.tensor([[1, 9, 5], [2, 30, 17], [3, 4, 2]], device=device)
    positions, slots = columns[:, 1], columns[:, 2]
    frequencies = torch.rand(16, generator=generator).to(device)[::2]
    qkv = torch.randn(3, 4 * 16, generator=generator).to(device)
    logits = torch.randn(3, 40, generator=generator).to(device)
    results = []
    for candidate in (kernels, ReferenceKernels()):
        tables = candidate.rope_tables(positions, frequencies, 1.0)
        wide = torch.cat(tables, -1).chunk(2, -1)
        cache = tuple(torch.zeros(shape, device=device) for shape in candidate.kv_cache_shapes(2, 16, 1, 16))
        step = candidate.pack_heads(AttentionHeads(2, 1, 16, None, None, 0.0))
        query = step(qkv.clone(), (wide[0], wide[1]), (cache[0], cache[1]), slots)
        chosen = candidate.logprobs(logits, columns[:, 0], 2).chosen
        # With one KV head the two layouts of a cache are the same bytes.
        results.append(torch.cat([x.flatten() for x in (*tables, query, *cache, chosen)]))
    assert relative_error(*results) < 1e-5


def test_what_there_is_no_room_for_is_refused(device: torch.device, hardware: Hardware) -> None:
    kernels = TritonKernels(hardware)
    for head_dim in (257, 63, 512):
        with pytest.raises(ValueError, match="not supported"):
            kernels.pack_heads(AttentionHeads(2, 2, head_dim, None, None, 0.0))
    with pytest.raises(TypeError):
        kernels.paged_attention(torch.zeros(1, 2, 16), torch.empty(0), torch.empty(0), object(), AttentionForm(1.0))
