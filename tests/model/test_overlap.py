"""Graphs, overlap and a device that is late change no token: random traffic, beside the same without any of them."""

import dataclasses
import itertools
import random
from pathlib import Path
from typing import Any

import pytest

from engine.api import EngineConfig, FinishReason, GenerateRequest, GenerationFailed, RequestOutput, SamplingParams
from engine.core import EngineCore
from engine.runner import ModelRunner, load_runner
from tests.model.late_device import LateDevice
from tests.model.tiny_models import make_qwen3

VOCAB_SIZE = 96
BLOCK_GIB = 2 * 2 * 16 * 2 * 16 * 4 / 2**30  # 2 layers, K and V, 16 tokens, 2 heads of 16, 4 bytes


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("qwen3")
    make_qwen3(path)
    return path


def load(directory: Path, num_blocks: int, device: LateDevice | None, **settings: Any) -> tuple[ModelRunner, Any]:
    config = EngineConfig(
        model=str(directory),
        dtype="float32",
        block_size=16,
        max_num_seqs=6,
        max_num_batched_tokens=40,
        max_model_len=128,
        kv_cache_memory_gib=(num_blocks + 0.5) * BLOCK_GIB,
        async_scheduling=device is not None,
        **settings,
    )
    runner, info = load_runner(config, lambda stage: None, device)
    return runner, EngineCore(config, info, runner)


@dataclasses.dataclass
class Answer:
    tokens: list[int] = dataclasses.field(default_factory=list)
    logprobs: list[tuple[float, int]] = dataclasses.field(default_factory=list)
    prompt_logprobs: list[float] | None = None
    reason: FinishReason | None = None


@dataclasses.dataclass
class Traffic:
    """Requests by the step before which they arrive, and (step, request) of the aborts."""

    arrivals: list[tuple[int, GenerateRequest]]
    aborts: list[tuple[int, int]]


def random_traffic(seed: int, num_requests: int, **extra: Any) -> Traffic:
    draw = random.Random(seed)
    shared = [draw.randrange(3, VOCAB_SIZE) for _ in range(48)]
    choices: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 0.9, "top_p": 0.9},
        {"temperature": 1.0, "top_k": 7, "n": 2},
        {"temperature": 0.0, "repetition_penalty": 1.3, "frequency_penalty": 0.2},
        {"temperature": 1.0, "presence_penalty": 0.7, "min_tokens": 4},
        {"temperature": 0.7, "allowed_token_ids": [*range(5, 40)], "logit_bias": {7: 2.0}},
        {"temperature": 0.0, "logprobs": 2},
        {"temperature": 0.8, "logprobs": 1, "prompt_logprobs": 1},
        {"temperature": 0.0, "stop_token_ids": [*range(10, 30)]},
    ]
    arrivals = []
    for i in range(num_requests):
        params = SamplingParams(
            seed=draw.randrange(2**31), max_tokens=draw.randint(1, 30), **{**draw.choice(choices), **extra}
        )
        prompt = shared[: draw.choice((0, 16, 40))] + [
            draw.randrange(3, VOCAB_SIZE) for _ in range(draw.randint(1, 50))
        ]
        words = ((12, 13), (40, 41, 42)) if draw.random() < 0.2 else ()
        request = GenerateRequest(
            request_id=i, prompt_token_ids=prompt, params=params, deadline=float("inf"), bad_words_ids=words
        )
        arrivals.append((draw.randint(0, 25), request))
    aborts = [(draw.randint(1, 30), i) for i in draw.sample(range(num_requests), num_requests // 6)]
    return Traffic(arrivals, aborts)


def serve(core: EngineCore, traffic: Traffic) -> dict[tuple[int, int], Answer]:
    answers: dict[tuple[int, int], Answer] = {}
    for step in itertools.count():
        for at, request in traffic.arrivals:
            if at == step:
                core.add_request(1, request)
                answers.update({(request.request_id, index): Answer() for index in range(request.params.n)})

        def leave(step: int = step) -> None:
            for at, request_id in traffic.aborts:
                if at == step:
                    core.abort(1, request_id)

        for output in itertools.chain(*core.step(leave).values()):
            assert isinstance(output, RequestOutput)
            take(answers[output.request_id, output.index], output)
        if step > 30 and not core.has_work():
            break
        assert step < 2000
    return answers


def take(answer: Answer, output: RequestOutput) -> None:
    assert answer.reason is None, "tokens after the end"
    answer.tokens += output.new_token_ids
    answer.logprobs += [(round(entry.logprob, 4), entry.rank) for entry in output.logprobs or ()]
    if output.prompt_logprobs is not None:
        answer.prompt_logprobs = [round(entry.logprob, 4) for entry in output.prompt_logprobs]
    answer.reason = output.finish_reason


def aborted(traffic: Traffic) -> set[int]:
    return {request_id for _, request_id in traffic.aborts}


def assert_same(found: dict[Any, Answer], expected: dict[Any, Answer], left: set[int]) -> None:
    """A request that was aborted may have come further in one than in the other; all else is equal."""
    assert found.keys() == expected.keys()
    for key, answer in expected.items():
        if key[0] not in left:
            assert found[key] == answer
        else:
            length = min(len(answer.tokens), len(found[key].tokens))
            assert found[key].tokens[:length] == answer.tokens[:length]


@pytest.mark.parametrize("enforce_eager", [False, True])
@pytest.mark.parametrize(("seed", "num_blocks"), [(0, 60), (1, 14), (2, 12), (3, 10)])
def test_late_and_overlapped_is_the_same(directory: Path, seed: int, num_blocks: int, enforce_eager: bool) -> None:
    traffic = random_traffic(seed, 24)
    _, plain = load(directory, num_blocks, None)
    expected = serve(plain, traffic)
    assert num_blocks > 20 or plain.scheduler.num_preemptions
    device = LateDevice()
    _, core = load(directory, num_blocks, device, enforce_eager=enforce_eager)
    device.num_replays = device.most_waiting = 0
    found = serve(core, traffic)
    assert_same(found, expected, aborted(traffic))
    assert bool(device.num_replays) is not enforce_eager
    assert device.most_waiting == 2, "no step was launched while another one was under way"
    pool = core.scheduler.kv_cache.pool
    assert pool.num_free_blocks == pool.num_usable_blocks and not core.has_work()


def greedy(request_id: int, prompt: list[int], max_tokens: int = 12) -> GenerateRequest:
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
    return GenerateRequest(request_id=request_id, prompt_token_ids=prompt, params=params, deadline=float("inf"))


def tokens_of(core: EngineCore) -> list[int]:
    """What all unfinished requests still get."""
    found: list[int] = []
    while core.has_work():
        found += [token for output in itertools.chain(*core.step().values()) for token in output.new_token_ids]
    return found


def test_after_a_step_that_fails_late_the_engine_goes_on(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner, core = load(directory, 60, LateDevice())
    core.add_request(1, greedy(0, [5, 6, 7, 8]))
    expected = tokens_of(core)
    assert len(expected) == 12

    def fail(*_: Any) -> None:
        raise MemoryError("scripted")

    core.add_request(1, greedy(1, [9, 10, 11]))
    core.step()
    core.step()
    with monkeypatch.context() as patch:
        # The device comes to it when the host collects, with another step launched behind it.
        patch.setattr(runner._kernels, "write_words", fail)
        core.add_request(1, greedy(2, [9, 10]))
        with pytest.raises(MemoryError, match="scripted"):
            core.step()
    failures = core.fail_step(GenerationFailed("scripted"))
    assert {failure.message.request_id for failure in failures} == {1, 2}
    assert not core.has_work()
    runner.recover()
    core.add_request(1, greedy(3, [5, 6, 7, 8]))
    assert tokens_of(core) == expected


def test_a_step_that_cannot_be_launched_leaves_the_one_before(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner, core = load(directory, 60, LateDevice())
    core.add_request(1, greedy(0, [5, 6, 7, 8], 1))
    assert core.step() == {}, "its only token is under way"
    core.add_request(1, greedy(1, [9, 10, 11]))

    def fail(*_: Any) -> None:
        raise MemoryError("scripted")

    with monkeypatch.context() as patch:
        patch.setattr(runner._device, "submit", fail)
        with pytest.raises(MemoryError, match="scripted"):
            core.step()
    [failure] = core.fail_step(GenerationFailed("scripted"))
    assert failure.message.request_id == 1
    runner.recover()
    assert len(tokens_of(core)) == 1
