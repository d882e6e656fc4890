"""Our models and transformers' of the same weights: the same logits, and greedily the same tokens."""

import dataclasses

import pytest
import torch

from engine.api import EngineConfig
from engine.loading import read_model_config
from engine.runner import ModelRunner, load_runner
from tests.model.driver import Driver, PromptLogits, make_sequence
from tests.model.tiny_models import make_llama, make_qwen3

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CASES = {
    "llama": (make_llama, {}),
    "llama-tied": (make_llama, {"tie_word_embeddings": True}),
    "llama-mha-biases": (make_llama, {"num_key_value_heads": 4, "attention_bias": True, "mlp_bias": True}),
    "llama-rope": (make_llama, {"rope_parameters": LLAMA3_ROPE}),
    "llama-mqa-sharded": (make_llama, {"num_key_value_heads": 1, "max_shard_size": "40KB"}),
    "qwen3": (make_qwen3, {"head_dim": 32}),
    "qwen3-tied-bias": (make_qwen3, {"tie_word_embeddings": True, "attention_bias": True}),
    "qwen3-theta": (make_qwen3, {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
}
PROMPT_LENGTHS = (1, 2, 15, 16, 17, 50)
NUM_NEW = 12


@dataclasses.dataclass
class Case:
    """A model of transformers, ours, and what transformers generates for PROMPTS."""

    reference: torch.nn.Module
    runner: ModelRunner
    path: object
    expected: list[list[int]]


def prompt(length):
    return torch.randint(3, 96, (length,), generator=torch.Generator().manual_seed(length)).tolist()


def reference_tokens(model, token_ids, num_new):
    """Greedy by transformers' own generate."""
    out = model.generate(torch.tensor([token_ids]), max_new_tokens=num_new, do_sample=False, eos_token_id=None)
    return out[0, len(token_ids) :].tolist()


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    make, overrides = CASES[request.param]
    path = tmp_path_factory.mktemp(request.param)
    reference = make(path, **overrides)
    config = EngineConfig(model=str(path), dtype="float32", block_size=16, max_num_seqs=8)
    runner, _ = load_runner(config, lambda stage: None)
    return Case(reference, runner, path, [reference_tokens(reference, prompt(n), NUM_NEW) for n in PROMPT_LENGTHS])


def test_logits_agree_at_every_token(case):
    found = PromptLogits(case.path, torch.float32)(prompt(70))
    with torch.inference_mode():
        expected = case.reference(torch.tensor(prompt(70))[None]).logits[0]
    assert expected.abs().max() > 1  # a flat distribution would agree with anything
    assert (found - expected).abs().max() < 1e-4


def test_greedy_tokens_are_those_of_transformers_alone(case):
    driver = Driver(case.runner, block_size=16)
    for length, expected in zip(PROMPT_LENGTHS, case.expected, strict=True):
        assert driver.generate([make_sequence(prompt(length))], NUM_NEW) == [expected]


@pytest.mark.parametrize("budget", [10**6, 20, 7, 1])
def test_greedy_tokens_are_those_of_transformers_batched_and_chunked(case, budget):
    driver = Driver(case.runner, block_size=16, budget=budget)
    sequences = [make_sequence(prompt(length), row) for row, length in enumerate(PROMPT_LENGTHS)]
    assert driver.generate(sequences, NUM_NEW) == case.expected


def test_bfloat16_is_near_the_float32_model(tmp_path):
    """bfloat16 holds 8 bits: its logits may be off by a percent or two, not by more."""
    reference = make_qwen3(tmp_path, dtype=torch.bfloat16).float()
    assert read_model_config(tmp_path).dtype == "bfloat16"
    found = PromptLogits(tmp_path, torch.bfloat16)(prompt(40)).float()
    with torch.inference_mode():
        expected = reference(torch.tensor(prompt(40))[None]).logits[0]
    assert float((found - expected).norm() / expected.norm()) < 0.03
