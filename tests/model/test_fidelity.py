"""A request's tokens depend on the request alone: not on its batch, the chunks of its prompt, preemption or order."""

import random
import shutil
from pathlib import Path

import pytest
import torch

from engine import LLM, SamplingParams
from engine.llm import TokensPrompt
from engine.loading import read_model_config
from engine.runner.model_runner import bytes_per_block
from kernels import KernelOptions, for_device, select
from kernels.cpu import load_native
from kernels.cpu.linear import NativeLinear, OneDnnLinear
from tests.model.driver import DEVICE, PromptLogits
from tests.model.tiny_models import make_llama, make_qwen3

SHIPPED = Path(__file__).parents[2] / "models/galley-tiny"
NUM_REQUESTS = 14
NATIVE = load_native()
native_quantization = pytest.mark.skipif(
    NATIVE is None or not NATIVE.has_quantized,
    reason="this CPU has no AVX512-VNNI",
)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    made = {}
    for name, make in (("llama", make_llama), ("qwen3", make_qwen3)):
        made[name] = tmp_path_factory.mktemp(name)
        make(made[name])
        shutil.copy(SHIPPED / "tokenizer.json", made[name])  # LLM wants one; the texts do not matter here
    return {"shipped": SHIPPED, **made}


def workload(vocab_size: int, max_len: int, seed: int) -> list[tuple[TokensPrompt, SamplingParams]]:
    """Prompts that begin alike and prompts that do not; greedy, seeded, filtered, several samples."""
    draw = random.Random(seed)
    prefix = [draw.randrange(vocab_size) for _ in range(max_len // 4)]
    requests = []
    for i in range(NUM_REQUESTS):
        own = [draw.randrange(vocab_size) for _ in range(draw.randrange(1, max_len // 3))]
        prompt = prefix[: draw.randrange(len(prefix))] + own if i % 2 else own
        params = SamplingParams(
            temperature=draw.choice([0.0, 0.7, 1.3]),
            top_k=draw.choice([0, 0, 20]),
            top_p=draw.choice([1.0, 0.9]),
            seed=draw.randrange(2**40),
            n=draw.choice([1, 1, 3]),
            max_tokens=draw.randrange(1, max_len // 4),
            ignore_eos=True,
        )
        requests.append(({"prompt_token_ids": prompt}, params))
    return requests


def cache_gib(path: Path, dtype: str, max_len: int) -> float:
    """Room for little more than one sequence of max_len, so that sequences take blocks from one another."""
    config = read_model_config(path)
    kernels = for_device(DEVICE)
    block_bytes = bytes_per_block(kernels, config, 32, getattr(torch, dtype))
    return block_bytes * (-(-max_len // 32) + 4) / 2**30


def run(llm: LLM, requests: list[tuple[TokensPrompt, SamplingParams]]) -> list[list[list[int]]]:
    results = llm.generate([prompt for prompt, _ in requests], [params for _, params in requests], use_tqdm=False)
    return [[output.token_ids for output in result.outputs] for result in results]


@pytest.mark.parametrize(
    "dtype",
    [
        "float32",
        pytest.param("bfloat16", marks=pytest.mark.cpu_only("cuBLAS rounds a product by the number of its rows")),
    ],
)
@pytest.mark.parametrize("name", ["shipped", "llama", "qwen3"])
def test_outputs_equal_solo_runs(models, name, dtype):
    path = str(models[name])
    solo = LLM(path, dtype=dtype, max_num_seqs=1, enable_prefix_caching=False)
    max_len = min(300, read_model_config(models[name]).max_position_embeddings)
    requests = workload(solo.vocab_size, max_len, seed=3)
    expected = [run(solo, [request])[0] for request in requests]
    for settings in (
        {"max_num_seqs": 64},
        {"max_num_seqs": 64, "max_num_batched_tokens": 17},
        {"max_num_seqs": 5, "max_num_batched_tokens": 100},
    ):
        assert run(LLM(path, dtype=dtype, **settings), requests) == expected, settings
    tiny = LLM(path, dtype=dtype, max_model_len=max_len, kv_cache_memory_gib=cache_gib(models[name], dtype, max_len))
    assert run(tiny, requests) == expected, "preempted"
    assert run(tiny, requests) == expected, "with a prefix cache that others have filled"
    scheduler = tiny._core.scheduler
    assert scheduler.num_preemptions > 0 and scheduler.kv_cache.num_prefix_hit_tokens > 0
    order = list(range(len(requests)))
    random.Random(1).shuffle(order)
    shuffled = run(LLM(path, dtype=dtype), [requests[i] for i in order])
    assert [shuffled[order.index(i)] for i in range(len(order))] == expected, "order of arrival"


@pytest.mark.cpu_only("bitwise equality is what the CPU's own products promise")
@pytest.mark.parametrize(
    ("dtype", "quantization"),
    [
        (torch.float32, "none"),
        (torch.bfloat16, "none"),
        pytest.param(torch.bfloat16, "int8", marks=native_quantization),
        pytest.param(torch.bfloat16, "int4", marks=native_quantization),
    ],
)
def test_logits_are_bitwise_the_same_in_any_chunks(dtype, quantization):
    logits = PromptLogits(SHIPPED, dtype, KernelOptions(quantization))
    prompt = [random.Random(0).randrange(1000) for _ in range(700)]
    whole = logits(prompt)
    for cuts in ((0, 1, 2, 40, 700), (0, 512, 699, 700), tuple(range(0, 701, 100))):
        assert torch.equal(logits(prompt, cuts=cuts), whole)


@pytest.mark.cpu_only("about oneDNN's products")
@pytest.mark.parametrize(("dtype", "near"), [("float32", 1e-3), ("bfloat16", 0.1)])
def test_without_determinism_only_near_ties_differ(monkeypatch, dtype, near):
    """oneDNN's products, which CPUs with a matrix unit use, round one row otherwise than a batch of rows."""
    monkeypatch.setattr(select, "has_matrix_unit", lambda: True)
    draw = random.Random(5)
    prompts: list[TokensPrompt] = [
        {"prompt_token_ids": [draw.randrange(1500) for _ in range(draw.randrange(3, 60))]} for _ in range(24)
    ]
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, logprobs=2)
    llm = LLM(str(SHIPPED), dtype=dtype, deterministic=False, enable_prefix_caching=False)
    batched = [result.outputs[0] for result in llm.generate(prompts, params, use_tqdm=False)]
    num_different = 0
    for prompt, output in zip(prompts, batched, strict=True):
        alone = llm.generate(prompt, params, use_tqdm=False)[0].outputs[0]
        if alone.token_ids == output.token_ids:
            continue
        num_different += 1
        first = next(i for i, (a, b) in enumerate(zip(alone.token_ids, output.token_ids, strict=True)) if a != b)
        best, second = sorted((entry.logprob for entry in alone.logprobs[first].values()), reverse=True)[:2]
        assert best - second < near, "a token that was not a near-tie differs"
    assert num_different <= len(prompts) // 3


@pytest.mark.cpu_only("about the CPU's linear layers")
def test_determinism_can_be_asked_for_where_it_is_not_the_default(monkeypatch):
    monkeypatch.setattr(select, "has_matrix_unit", lambda: True)
    cpu = torch.device("cpu")
    weight = torch.randn(64, 64)
    kinds = {
        deterministic: type(
            for_device(cpu, torch.float32, KernelOptions("none", deterministic)).pack_linear([weight], None)
        )
        for deterministic in (None, False, True)
    }
    assert kinds == {None: OneDnnLinear, False: OneDnnLinear, True: NativeLinear}
