"""The whole engine on a GPU: graphs and overlap change no token, no launch waits, and a full memory costs one step."""

import dataclasses
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("msgspec")
pytest.importorskip("transformers")

from benchmarks.gpu_models import LLAMA_8B, config_of
from engine.api import EngineConfig, GenerateRequest, GenerationFailed, RequestOutput, SamplingParams
from engine.core import EngineCore
from engine.runner import load_runner
from tests.model.tiny_models import make_llama, make_qwen3

BLOCK_SIZE = 16
NUM_REQUESTS = 48
# Blocks beside the null block: three of the longest sequences' worth, for up to sixteen sequences.
NUM_BLOCKS = 48
# Of the best two tokens' log-probabilities, what bfloat16's rounding can turn around.
NEAR = 0.15
MODES: dict[str, dict[str, bool]] = {
    "graphs": {"enforce_eager": False, "async_scheduling": False},
    "overlap": {"enforce_eager": True, "async_scheduling": True},
    "graphs and overlap": {"enforce_eager": False, "async_scheduling": True},
}
PLAIN = {"enforce_eager": True, "async_scheduling": False}


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def model_dir(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    {"llama": make_llama, "qwen3": make_qwen3}[request.param](path)
    return path


def make_core(model_dir: Path, **settings: Any) -> EngineCore:
    """A core with room for few sequences."""
    dtype = settings.get("dtype", "float32")
    # 2 layers, K and V, 2 heads of 16 numbers.
    block_bytes = 2 * 2 * BLOCK_SIZE * 2 * 16 * getattr(torch, dtype).itemsize
    given: dict[str, Any] = {
        "device": "cuda", "dtype": dtype, "block_size": BLOCK_SIZE, "max_num_seqs": 16, "max_num_batched_tokens": 96,
        "kv_cache_memory_gib": (NUM_BLOCKS + 1.5) * block_bytes / 2**30,
    }  # fmt: skip
    config = EngineConfig(model=str(model_dir), **(given | settings))
    runner, info = load_runner(config, lambda stage: None)
    return EngineCore(config, info, runner)


@dataclasses.dataclass
class Traffic:
    """Requests, the step in which each arrives, and the step in which some are aborted."""

    requests: list[GenerateRequest]
    arrivals: list[int]
    aborts: dict[int, list[int]]

    @classmethod
    def random(cls, seed: int, logprobs: int | None = None) -> "Traffic":
        draw = random.Random(seed)
        requests = []
        for i in range(NUM_REQUESTS):
            prompt = [draw.randrange(3, 96) for _ in range(draw.choice([1, 5, 30, 110]) + draw.randrange(10))]
            params = SamplingParams(
                temperature=0.0, max_tokens=draw.randrange(1, 120), ignore_eos=draw.random() < 0.5, logprobs=logprobs
            )
            requests.append(request(i, prompt, params))
        arrivals = sorted(draw.randrange(120) for _ in range(NUM_REQUESTS))
        aborts: dict[int, list[int]] = {}
        for i in draw.sample(range(NUM_REQUESTS), NUM_REQUESTS // 6):
            aborts.setdefault(arrivals[i] + draw.randrange(1, 60), []).append(i)
        return cls(requests, arrivals, aborts)

    @property
    def aborted(self) -> set[int]:
        return {i for ids in self.aborts.values() for i in ids}


def request(i: int, prompt: list[int], params: SamplingParams) -> GenerateRequest:
    return GenerateRequest(request_id=i, prompt_token_ids=prompt, params=params, deadline=float("inf"))


@dataclasses.dataclass
class Served:
    """Of one request: its tokens, why it ended, and how far apart the two best tokens were at each."""

    token_ids: list[int] = dataclasses.field(default_factory=list)
    finish_reason: str | None = None
    margins: list[float] = dataclasses.field(default_factory=list)

    def take(self, output: RequestOutput) -> None:
        self.token_ids += output.new_token_ids
        self.finish_reason = output.finish_reason or self.finish_reason
        for entry in output.logprobs or []:
            self.margins.append(entry.top_logprobs[0] - entry.top_logprobs[1])


def serve(core: EngineCore, traffic: Traffic) -> list[Served]:
    served = [Served() for _ in traffic.requests]
    num_added = step = 0
    while num_added < len(traffic.requests) or core.has_work():
        while num_added < len(traffic.requests) and traffic.arrivals[num_added] <= step:
            core.add_request(0, traffic.requests[num_added])
            num_added += 1
        for i in traffic.aborts.get(step, []):
            core.abort(0, i)
        for output in core.step().get(0, []):
            served[output.request_id].take(output)
        step += 1
    return served


@pytest.mark.parametrize("seed", [0, 1])
def test_graphs_and_overlap_change_no_token(model_dir: Path, seed: int) -> None:
    plain = make_core(model_dir, **PLAIN)
    traffic = Traffic.random(seed)
    expected = serve(plain, traffic)
    assert plain.scheduler.num_preemptions > 0
    assert sum(len(one.token_ids) for one in expected) > 1000
    for name, settings in MODES.items():
        core = make_core(model_dir, **settings)
        found = serve(core, traffic)
        assert core.scheduler.num_preemptions > 0
        for i, (one, other) in enumerate(zip(expected, found, strict=True)):
            if i in traffic.aborted:
                num_both = min(len(one.token_ids), len(other.token_ids))
                assert one.token_ids[:num_both] == other.token_ids[:num_both], (name, i)
            else:
                assert (one.token_ids, one.finish_reason) == (other.token_ids, other.finish_reason), (name, i)


def test_in_bfloat16_only_near_ties_differ(model_dir: Path) -> None:
    """Its 8 bits tie often, and a product of another number of rows rounds otherwise."""
    told = serve(make_core(model_dir, dtype="bfloat16", **PLAIN), Traffic.random(2, logprobs=2))
    for name, settings in MODES.items():
        traffic = Traffic.random(2)
        found = serve(make_core(model_dir, dtype="bfloat16", **settings), traffic)
        num_different = 0
        for i, (one, other) in enumerate(zip(told, found, strict=True)):
            pairs = zip(one.token_ids, other.token_ids, strict=False)
            first = next((place for place, (a, b) in enumerate(pairs) if a != b), None)
            if first is not None:
                num_different += 1
                assert one.margins[first] < NEAR, (name, i)
            elif i not in traffic.aborted:
                assert (one.token_ids, one.finish_reason) == (other.token_ids, other.finish_reason), (name, i)
        assert num_different <= NUM_REQUESTS // 2, name


@pytest.fixture
def waiting_is_an_error() -> Iterator[Callable[[EngineCore], None]]:
    """Makes every launch of a core's runner one in which any wait that torch knows of is an error."""

    def guard(core: EngineCore) -> None:
        launch = core.runner.launch

        def launch_without_waiting(output: Any) -> Any:
            torch.cuda.set_sync_debug_mode("error")
            try:
                return launch(output)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        core.runner.launch = launch_without_waiting  # type: ignore[method-assign]

    yield guard
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("mode", ["graphs and overlap", "overlap"])
def test_no_launch_waits_for_the_device(
    model_dir: Path, mode: str, waiting_is_an_error: Callable[[EngineCore], None]
) -> None:
    """Decodes, prompts, chunks, ends, preemptions: of a step nothing is waited for but its tokens, one step later."""
    core = make_core(model_dir, **MODES[mode])
    traffic = Traffic.random(3)
    serve(core, traffic)  # what is launched for the first time compiles and loads, which may wait
    waiting_is_an_error(core)
    served = serve(core, traffic)
    assert sum(len(one.token_ids) for one in served) > 1000


def test_a_step_out_of_memory_fails_its_own_requests_only(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)
    requests = [request(i, list(range(3 + i, 40 + i)), params) for i in range(4)]
    core = make_core(model_dir, max_num_seqs=2)
    expected = serve(core, Traffic(requests, [0] * 4, {}))
    model = core.runner._model  # type: ignore[attr-defined]

    def takes_too_much(*args: Any, **kwargs: Any) -> Any:
        torch.empty(2**46, dtype=torch.uint8, device="cuda")

    for one in requests:
        core.add_request(0, one)
    with monkeypatch.context() as patch:
        patch.setattr(model, "forward", takes_too_much)
        with pytest.raises(torch.OutOfMemoryError):
            core.step()
    failures = core.fail_step(GenerationFailed("no memory"))
    assert [failure.message.request_id for failure in failures] == [0, 1]
    core.runner.recover()
    found = [Served() for _ in requests]
    while core.has_work():
        for output in core.step().get(0, []):
            found[output.request_id].take(output)
    assert [one.token_ids for one in found] == [[], [], *(one.token_ids for one in expected[2:])]


def test_a_model_that_does_not_fit_is_refused_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config_of(LLAMA_8B)))
    config = EngineConfig(model=str(tmp_path), device="cuda", load_format="dummy")
    # Of this process alone: others may be using the same GPU.
    torch.cuda.set_per_process_memory_fraction(0.02)
    try:
        with pytest.raises(ValueError) as caught:
            load_runner(config, lambda stage: None)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "\n" not in str(caught.value)
    assert "memory" in str(caught.value)


def test_a_cache_that_cannot_hold_one_sequence_is_refused_with_one_line(model_dir: Path) -> None:
    config = EngineConfig(model=str(model_dir), device="cuda", gpu_memory_utilization=1e-6)
    with pytest.raises(ValueError, match="gpu_memory_utilization") as caught:
        load_runner(config, lambda stage: None)
    assert "\n" not in str(caught.value)
