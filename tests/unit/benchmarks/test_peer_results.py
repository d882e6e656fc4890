"""The figures and bars of `benchmarks/cpu_peers.py`, against arithmetic done by hand."""

import argparse
from typing import Any

import pytest

from benchmarks.peer_results import assess, print_tables
from benchmarks.random_model import Shape

ARGS = argparse.Namespace(num_prompts=16, input_len=128, single_output_len=65, output_len=128)
GB_S = 1e9


def engine(seconds: float, start_s: float | None = None, token: int = 7) -> dict[str, Any]:
    """One round in which a decoded token took `seconds`, a first token none, and a batch 128 times as long."""
    times = {"single": [64 * seconds] * 3, "single_first": [0.0] * 3, "batch": [128 * seconds] * 3}
    times["shared"] = times["batch"]
    first = {name: [[token]] * 3 for name in times}
    workloads = {name: {"seconds": times[name], "first_tokens": first[name]} for name in times}
    starts = {} if start_s is None else {"start": [start_s]}
    return {
        "settings": {},
        "environment": {},
        "rounds": [{"describe": {}, "workloads": workloads, "starts": starts}],
    }


def test_ratios_and_bars() -> None:
    measured = {
        "galley": engine(0.05, start_s=2.0),
        "vllm": engine(0.1, start_s=50.0),
        "vllm_tuned": engine(0.07),
        "transformers": engine(0.2, start_s=6.0, token=8),
    }
    result = assess(measured, 40 * GB_S, Shape(), ARGS)
    assert result["results"]["galley"]["batch_tok_s"] == 16 * 128 / (128 * 0.05)
    assert result["ratios"]["vllm"] == {"single_tok_s": 2.0, "batch_tok_s": 2.0, "shared_tok_s": 2.0, "start_s": 25.0}
    bars = result["bars"]
    # The better of vLLM's two runs counts.
    assert bars["batch_vs_vllm"] == {"value": 1.4, "bar": 1.5, "met": False}
    assert bars["start_vs_vllm"] == {"value": 25.0, "bar": 20.0, "met": True}
    assert bars["single_vs_generate"] == {"value": 4.0, "bar": 2.5, "met": True}
    assert result["results"]["transformers"]["same_first_tokens"] == "0/9"
    assert result["results"]["vllm"]["same_first_tokens"] == "9/9"
    print_tables(result)


def test_share_of_the_bandwidth_counts_each_weight_once_and_the_cache() -> None:
    # Qwen3-0.6B: 28 layers of 1024 x (2048 + 2 x 1024 + 2048 + 3 x 3072) weights, and the tied head.
    weights = 28 * 1024 * (2048 + 2 * 1024 + 2048 + 3 * 3072) + 151936 * 1024
    cached_tokens = 128 + 65 / 2
    num_bytes = 2 * weights + cached_tokens * 2 * 28 * 8 * 128 * 2
    result = assess({"galley": engine(0.05)}, 40 * GB_S, Shape(), ARGS)
    assert result["results"]["galley"]["bandwidth_share"] == pytest.approx(num_bytes / 0.05 / 40e9, abs=0.001)


def test_a_peer_that_failed_leaves_its_bars_open() -> None:
    failed: dict[str, Any] = {"settings": {}, "environment": {}, "rounds": [], "error": "transformers failed: oh"}
    result = assess({"galley": engine(0.05, start_s=2.0), "transformers": failed}, 40 * GB_S, Shape(), ARGS)
    assert result["results"]["transformers"]["error"] == "transformers failed: oh"
    assert result["bars"]["batch_vs_generate"]["met"] is None
    assert result["bars"]["batch_vs_vllm"]["met"] is None
    print_tables(result)
