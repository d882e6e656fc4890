"""The engine client alone, over the scripted engine's socket."""

import threading
import time
from pathlib import Path

import gevent
import pytest

from container.engine_client import EngineClient, RequestOptions
from container.served_model import ServedModel, load_served_model
from engine.api import DeadlineExceeded, EngineNotReady, ModelInfo, RequestAborted, SamplingParams
from tests.http.scripted_engine import ScriptedEngine, wait_until

PARAMS = SamplingParams(max_tokens=None)


def deadline(seconds: float = 20.0) -> float:
    return time.monotonic() + seconds


def test_a_slow_reader_costs_one_merged_slot(engine_client: EngineClient, engine: ScriptedEngine) -> None:
    generation = engine_client.generate([[1, 2]], SamplingParams(n=2, max_tokens=None), deadline())
    wait_until(lambda: engine.generated and engine.num_running == 0)
    gevent.sleep(0.1)
    outputs = [output for _, output in generation]
    assert [output.index for output in outputs] == [0, 1]
    for output in outputs:
        assert output.new_token_ids == [*engine.reply, engine.model.eos_token_ids[0]]
        assert output.finish_reason == "stop"
        assert output.stop_token_id == engine.model.eos_token_ids[0]


def test_outputs_of_several_prompts_name_their_prompt(engine_client: EngineClient, engine: ScriptedEngine) -> None:
    got = dict.fromkeys(range(3), 0)
    for prompt_index, output in engine_client.generate([[1], [2], [3]], PARAMS, deadline()):
        got[prompt_index] += len(output.new_token_ids)
    assert set(got.values()) == {len(engine.reply) + 1}
    assert [request.prompt_token_ids for request in engine.generated] == [[1], [2], [3]]
    assert len({request.request_id for request in engine.generated}) == 3


def test_a_thousand_prompts_go_to_the_engine_by_and_by(engine_client: EngineClient, engine: ScriptedEngine) -> None:
    engine.held.set()
    generation = engine_client.generate([[i] for i in range(200)], SamplingParams(n=3, max_tokens=1), deadline())
    wait_until(lambda: engine.num_running == 63)
    gevent.sleep(0.05)
    assert engine.num_running == 63
    engine.held.clear()
    assert sorted(i for i, _ in generation) == sorted([*range(200)] * 3)
    assert [request.prompt_token_ids for request in engine.generated] == [[i] for i in range(200)]


def test_what_came_before_the_engines_death_is_not_lost(engine_client: EngineClient, engine: ScriptedEngine) -> None:
    generation = engine_client.generate([[1]], PARAMS, deadline())
    wait_until(lambda: engine.generated and engine.num_running == 0)
    gevent.sleep(0.05)
    engine.die()
    wait_until(lambda: not engine_client.health().is_ready)
    assert [output.finish_reason for _, output in generation] == ["stop"]
    engine.start()
    wait_until(lambda: engine_client.health().is_ready)


def test_cancel_aborts_everything_that_runs(engine_client: EngineClient, engine: ScriptedEngine) -> None:
    engine.held.set()
    generation = engine_client.generate([[1], [2]], PARAMS, deadline())
    wait_until(lambda: engine.num_running == 2)
    gevent.spawn_later(0.05, generation.cancel)
    with pytest.raises(RequestAborted):
        list(generation)
    wait_until(lambda: engine.num_running == 0)
    generation.close()
    gevent.sleep(0.05)
    assert len(engine.aborted) == 2


def test_a_finished_generation_aborts_nothing(engine_client: EngineClient, engine: ScriptedEngine) -> None:
    generation = engine_client.generate([[1]], PARAMS, deadline())
    assert list(generation)
    generation.close()
    generation.cancel()
    gevent.sleep(0.1)
    assert engine.aborted == []


def test_the_worker_ends_what_the_engine_forgot(
    engine_client: EngineClient, engine: ScriptedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("container.engine_generation._DEADLINE_SLACK_S", 0.1)
    engine.held.set()
    generation = engine_client.generate([[1]], PARAMS, deadline(0.1))
    with pytest.raises(DeadlineExceeded):
        list(generation)
    generation.close()
    wait_until(lambda: engine.aborted)


@pytest.mark.parametrize("state", ["starting", "draining", "failed"])
def test_only_ready_is_ready(engine_client: EngineClient, engine: ScriptedEngine, state: str) -> None:
    engine.state = state  # type: ignore[assignment]
    wait_until(lambda: not engine_client.health().is_ready)
    assert engine_client.health().stage == f"is {state}"
    with pytest.raises(EngineNotReady):
        engine_client.generate([[1]], PARAMS, deadline())
    engine.state = "ready"
    wait_until(lambda: engine_client.health().is_ready)


def test_connects_again_after_the_engine_died(engine_client: EngineClient, engine: ScriptedEngine) -> None:
    engine.die()
    wait_until(lambda: not engine_client.health().is_ready)
    engine.start()
    wait_until(lambda: engine_client.health().is_ready)
    assert list(engine_client.generate([[1]], PARAMS, deadline()))


def test_a_request_waits_for_the_tokenizer_of_an_engine_that_is_ready(engine: ScriptedEngine) -> None:
    loading = threading.Event()

    def load_slowly(info: ModelInfo) -> ServedModel:
        loading.wait(10)
        return load_served_model(info)

    client = EngineClient(str(engine.path), stall_limit_s=60.0, load_model=load_slowly)
    client.start()
    try:
        wait_until(lambda: client.health().stage == "loading the tokenizer")
        gevent.spawn_later(0.1, loading.set)
        assert client.model().info == engine.model
    finally:
        loading.set()
        client.stop()


def test_without_an_engine_a_request_is_refused_within_a_moment(tmp_path: Path) -> None:
    client = EngineClient(str(tmp_path / "nobody.sock"), stall_limit_s=60.0)
    client.start()
    try:
        with pytest.raises(EngineNotReady, match="waiting for the engine"):
            client.model()
    finally:
        client.stop()


def test_tokens_may_gather_until_somebody_wants_them(engine_client: EngineClient, engine: ScriptedEngine) -> None:
    # 29 tokens and the last one.
    assert len(engine.reply) == 29
    engine.step_s = 0.005
    options = RequestOptions(num_gathered_tokens=10)
    generation = engine_client.generate([[1, 2]], SamplingParams(max_tokens=None), deadline(), options)
    sizes = [len(output.new_token_ids) for _, output in generation]
    assert sum(sizes) == 30
    assert all(size >= 10 for size in sizes[:-1])
    assert len(sizes) >= 2
