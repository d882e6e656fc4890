"""A model computed by the Triton kernels samples the tokens that it samples by the reference's."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kernels import Kernels
from kernels.gpu.hardware import Hardware
from kernels.gpu.kernels import TritonKernels
from kernels.reference import ReferenceKernels
from tests.kernels.gpu.conftest import HAS_GPU

pytest.importorskip("msgspec")

from engine.api import EngineConfig, SamplingParams
from engine.loading import read_model_config
from engine.runner import ModelRunner
from engine.runner.device import HostDevice
from engine.runner.model_runner import RunnerLimits
from engine.runner.start import load_model
from tests.model.driver import Driver, make_sequence
from tests.model.tiny_models import make_llama, make_qwen3

BLOCK_SIZE = 16


def runner_of(directory: Path, kernels: Kernels) -> ModelRunner:
    config = read_model_config(directory)
    limits = RunnerLimits(
        num_blocks=24, block_size=BLOCK_SIZE, max_num_seqs=4, max_num_batched_tokens=24, max_model_len=128
    )
    settings = EngineConfig(model=str(directory))
    loaded = load_model(settings, config, kernels, torch.float32, torch.device("cpu"))
    return ModelRunner(loaded, HostDevice(), limits)


@pytest.mark.skipif(HAS_GPU, reason="for the interpreter; tests/gpu is for GPUs")
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
