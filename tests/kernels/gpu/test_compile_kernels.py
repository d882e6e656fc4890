"""A directory that one command fills without a GPU has all binaries that serving looks up, and a start loads them."""

import ctypes.util
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("msgspec")

HAS_DRIVER = ctypes.util.find_library("cuda") is not None
ROOT = Path(__file__).parents[3]
# 301 tokens: rows of logits, counts and masks, one after the other, are then not all aligned.
CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 301,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
}

# Another process, other settings, a GPU of another size, and traffic at random. Nothing here is what the command did.
SERVE = """
import dataclasses, json, random, sys
import triton
from engine.api import EngineConfig, SamplingParams
from engine.compile_kernels import meta_runner, start
from kernels.gpu.hardware import KNOWN
from kernels.gpu.no_gpu import compiling
from tests.model.driver import Driver, make_sequence

model, cache_dir = sys.argv[1:]
triton.knobs.cache.dir = cache_dir
found = []
triton.knobs.compilation.listener = lambda src, cache_hit, **_: found.append((src.name, cache_hit))
draw = random.Random(0)
launched, late = set(), set()
choices = [
    {}, {"temperature": 0.7, "top_p": 0.5}, {"temperature": 1.0, "top_k": 3, "min_p": 0.2}, {"presence_penalty": 0.5},
    {"repetition_penalty": 1.5, "temperature": 0.3}, {"logit_bias": {5: 1.0, 300: -2.0}}, {"logprobs": 0},
    {"allowed_token_ids": (0, 3, 299)}, {"logprobs": 7}, {"prompt_logprobs": 20}, {"prompt_logprobs": 0, "logprobs": 3},
    {"min_tokens": 3, "stop_token_ids": (7,)}, {"frequency_penalty": 0.1, "logprobs": 20},
]
for settings, num_multiprocessors in (
    ({"max_num_seqs": 15, "max_model_len": 999, "max_num_batched_tokens": 200}, 4),
    ({"max_num_seqs": 130, "max_num_batched_tokens": 1001}, 132),
    ({"max_num_seqs": 40, "max_model_len": 128, "enforce_eager": True}, 8),
    ({"max_num_seqs": 1, "max_model_len": 40, "max_num_batched_tokens": 16}, 20),
):
    config = EngineConfig(model=model, block_size=16, **settings)
    hardware = dataclasses.replace(KNOWN[90], num_multiprocessors=num_multiprocessors)
    now = {}
    with compiling(90, lambda kernel: now.update({kernel.hash: kernel.name})):
        runner = meta_runner(config, hardware)
        start(runner, enforce_eager=config.enforce_eager)
        warm = set(now)
        driver = Driver(runner, 16)
        driver.free = list(range(1, 10**4))
        length = runner.limits.max_model_len
        rows = list(range(runner.limits.max_num_seqs))
        running = []
        for step in range(60):
            for _ in range(draw.choice((0, 0, 1, 5, 40))):
                if rows:
                    params = SamplingParams(**{"temperature": 0.0, "seed": 1} | draw.choice(choices))
                    prompt = [draw.randrange(301) for _ in range(draw.randint(1, min(300, length - 5)))]
                    running.append(make_sequence(prompt, rows.pop(), params))
            draw.shuffle(running)
            if draw.random() < 0.7:
                running.sort(key=lambda sequence: sequence.num_uncomputed_tokens)
            driver.budget = draw.choice((7, runner.limits.max_num_batched_tokens))
            if running:
                driver.step(running)
            for sequence in list(running):
                if sequence.num_tokens >= length - 1 or draw.random() < 0.1:
                    driver.release(sequence)
                    running.remove(sequence)
                    rows.append(sequence.row)
                elif draw.random() < 0.05:
                    driver.release(sequence)
    launched |= set(now)
    late |= {now[key] for key in set(now) - warm}
print(json.dumps({"found": found, "launched": len(launched), "late": sorted(late)}))
"""


def run(*arguments: str, cwd: Path = ROOT) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def files(directory: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in directory.rglob("*") if path.is_file()}


def load_error(module: str) -> str:
    spec = importlib.util.spec_from_file_location("cuda_utils", module)
    assert spec is not None
    with pytest.raises(ImportError) as error:
        importlib.util.module_from_spec(spec)
    return str(error.value)


def test_serving_compiles_nothing_that_the_command_has_not(tmp_path: Path) -> None:
    model, cache = tmp_path / "model", tmp_path / "cache"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(CONFIG))
    command = ("-m", "engine.compile_kernels", "--model", str(model), "--capability", "90", "--block-size", "16")
    said = run(*command, "--cache-dir", str(cache))
    counts = re.search(r"sm_90: (\d+) binaries, (\d+) of them new", said)
    assert counts is not None, said
    assert counts[1] == counts[2] and 15 <= int(counts[1]) <= 30
    filled = files(cache)
    assert sum(path.endswith(".cubin") for path in filled) == int(counts[1])
    assert not any(path.endswith((".ptx", ".ttir", ".llir")) for path in filled)
    # What launches them is there too, bound to the driver of the machine that will load it.
    [utilities] = [path for path in filled if Path(path).name.startswith("cuda_utils.")]
    assert HAS_DRIVER or "libcuda.so.1" in load_error(utilities)

    served = json.loads(run("-c", SERVE, str(model), str(cache)))
    missed = [name for name, is_hit in served["found"] if not is_hit]
    assert missed == []
    assert files(cache) == filled
    # And none is looked up while requests wait: the start has had them all.
    assert served["late"] == []
    # The traffic is a fair sample: it launches everything that was compiled.
    assert served["launched"] == int(counts[1])


def test_a_model_that_cannot_be_served_is_one_line(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-m", "engine.compile_kernels", "--capability", "80", "--model", str(tmp_path / "none")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [f"the model directory '{tmp_path / 'none'}' does not exist"]
