"""The whole engine on the Triton kernels, chunked, overlapped, recorded and preempted, beside the CPU's plain one."""

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("msgspec")

from engine.api import EngineConfig, GenerateRequest, SamplingParams
from engine.core import EngineCore
from engine.runner import load_runner, start
from engine.runner.device import Device
from kernels.gpu.hardware import KNOWN
from kernels.gpu.kernels import TritonKernels
from tests.kernels.gpu.conftest import HAS_GPU
from tests.model.late_device import LateDevice
from tests.model.test_overlap import Answer, Traffic, serve
from tests.model.tiny_models import make_qwen3

pytestmark = pytest.mark.skipif(HAS_GPU, reason="for the interpreter; tests/gpu is for GPUs")

VOCAB_SIZE = 96
SHAPE = {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 48, "vocab_size": VOCAB_SIZE}
MAX_MODEL_LEN = 64
NUM_BLOCKS = 5
BLOCK_GIB = 2 * 16 * 2 * 16 * 4 / 2**30  # K and V, 16 tokens, 2 heads of 16, 4 bytes
# So few that one sequence's keys are split among programs, and those of three are not.
HARDWARE = dataclasses.replace(KNOWN[90], num_multiprocessors=1)
PARAMS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.9, "top_p": 0.9, "min_p": 0.01},
    {"temperature": 1.0, "top_k": 7},
    {"temperature": 0.0, "repetition_penalty": 1.3, "frequency_penalty": 0.2},
    {"temperature": 1.0, "presence_penalty": 0.7, "min_tokens": 4},
    {"temperature": 0.7, "allowed_token_ids": (*range(5, 40),), "logit_bias": {7: 2.0}},
    {"temperature": 0.8, "logprobs": 2},
    {"temperature": 0.0, "prompt_logprobs": 1},
]


def traffic() -> Traffic:
    draw = random.Random(7)
    arrivals = []
    for i, params in enumerate(PARAMS):
        prompt = [draw.randrange(3, VOCAB_SIZE) for _ in range(draw.randint(4, 40))]
        request = GenerateRequest(
            request_id=i,
            prompt_token_ids=prompt,
            params=SamplingParams(seed=i, max_tokens=draw.randint(5, 12), ignore_eos=True, **params),
            deadline=float("inf"),
            bad_words_ids=((12, 13), (40, 41, 42)) if i == 1 else (),
        )
        arrivals.append((draw.randint(0, 12), request))
    return Traffic(arrivals, [])


def load(directory: Path, device: Device | None) -> EngineCore:
    config = EngineConfig(
        model=str(directory),
        dtype="float32",
        block_size=16,
        max_num_seqs=3,
        max_num_batched_tokens=24,
        max_model_len=MAX_MODEL_LEN,
        kv_cache_memory_gib=(NUM_BLOCKS + 0.5) * BLOCK_GIB,
        async_scheduling=device is not None,
    )
    runner, info = load_runner(config, lambda stage: None, device)
    return EngineCore(config, info, runner)


def assert_close(found: Answer, expected: Answer) -> None:
    """The same tokens, and log-probabilities but for rounding; ranks too, since none are that close."""
    assert (found.tokens, found.reason) == (expected.tokens, expected.reason)
    assert [rank for _, rank in found.logprobs] == [rank for _, rank in expected.logprobs]
    assert [x for x, _ in found.logprobs] == pytest.approx([x for x, _ in expected.logprobs], abs=2e-4)
    assert (found.prompt_logprobs or []) == pytest.approx(expected.prompt_logprobs or [], abs=2e-4)


def test_the_engine_answers_the_same_on_the_triton_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_qwen3(tmp_path, **SHAPE)
    plain = load(tmp_path, None)
    expected = serve(plain, traffic())
    assert plain.scheduler.num_preemptions
    assert any(answer.prompt_logprobs for answer in expected.values())

    monkeypatch.setattr(start, "for_device", lambda *_: TritonKernels(HARDWARE))
    device = LateDevice()
    core = load(tmp_path, device)
    device.num_replays = device.most_waiting = 0
    found = serve(core, traffic())
    assert found.keys() == expected.keys()
    for key, answer in expected.items():
        assert_close(found[key], answer)
    assert core.scheduler.num_preemptions
    assert device.num_replays and device.most_waiting == 2
