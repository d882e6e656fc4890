"""The offline API on the shipped model: forms of prompts, results in order, and use after errors."""

import signal
from pathlib import Path
from typing import Any

import pytest

from engine import LLM, SamplingParams
from engine.api import ContextLengthExceeded, InvalidRequest
from engine.core import EngineCore

MODEL = str(Path(__file__).parents[2] / "models/galley-tiny")
GREEDY = SamplingParams(temperature=0, max_tokens=8)


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM(MODEL, dtype="float32", max_num_seqs=4)


def test_forms_of_prompts_and_their_order(llm: LLM) -> None:
    [alone] = llm.generate("Hello", GREEDY, use_tqdm=False)
    ids = {"prompt_token_ids": alone.prompt_token_ids}
    many = llm.generate(["Hello", ids, "Galley is", *["Hello"] * 9], GREEDY, use_tqdm=False)  # type: ignore[list-item]
    assert [result.prompt for result in many[:3]] == ["Hello", None, "Galley is"]
    assert {result.outputs[0].text for i, result in enumerate(many) if i != 2} == {alone.outputs[0].text}
    assert many[2].outputs[0].text != alone.outputs[0].text
    assert alone.outputs[0].finish_reason == "length"
    assert len(alone.outputs[0].token_ids) == 8
    assert llm.generate([], GREEDY) == []


def test_params_per_prompt_and_samples(llm: LLM) -> None:
    params = [SamplingParams(max_tokens=5, n=3, seed=4, ignore_eos=True, temperature=20.0), GREEDY]
    first, second = llm.generate(["Hello", "Hello"], params, use_tqdm=False)
    assert [output.index for output in first.outputs] == [0, 1, 2]
    assert [len(output.token_ids) for output in first.outputs] == [5, 5, 5]
    assert len({tuple(output.token_ids) for output in first.outputs}) > 1
    assert len(second.outputs) == 1
    [again] = llm.generate("Hello", params[0], use_tqdm=False)
    assert [output.token_ids for output in again.outputs] == [output.token_ids for output in first.outputs]


def test_extremes_of_sampling_are_the_most_likely_token(llm: LLM) -> None:
    expected = llm.generate("Hello", GREEDY, use_tqdm=False)[0].outputs[0].token_ids
    for extreme in ({"top_p": 1e-320}, {"top_p": 5e-324}, {"top_k": 1}, {"temperature": 1e-320}, {"top_p": 1e-30}):
        params = SamplingParams(max_tokens=8, seed=1, **extreme)  # type: ignore[arg-type]
        assert llm.generate("Hello", params, use_tqdm=False)[0].outputs[0].token_ids == expected


def test_a_stop_string_ends_the_sequence_in_the_engine_too(llm: LLM) -> None:
    [result] = llm.generate("Hello", SamplingParams(temperature=0, max_tokens=2000, ignore_eos=True), use_tqdm=False)
    stop = result.outputs[0].text[5:8]
    [stopped] = llm.generate("Hello", SamplingParams(temperature=0, max_tokens=2000, stop=(stop,)), use_tqdm=False)
    assert stopped.outputs[0].text == result.outputs[0].text[: result.outputs[0].text.index(stop)]
    assert (stopped.outputs[0].finish_reason, stopped.outputs[0].stop_reason) == ("stop", stop)


@pytest.mark.parametrize(
    ("prompts", "params", "error"),
    [
        (5, GREEDY, InvalidRequest),
        ([[1, 2]], GREEDY, InvalidRequest),
        ({"prompt": "x"}, GREEDY, InvalidRequest),
        ({"prompt_token_ids": [1.5]}, GREEDY, InvalidRequest),
        ({"prompt_token_ids": [10**7]}, GREEDY, InvalidRequest),
        ({"prompt_token_ids": []}, GREEDY, InvalidRequest),
        ("", GREEDY, InvalidRequest),
        (["Hello"], {}, InvalidRequest),
        (["Hello"], [GREEDY, GREEDY], InvalidRequest),
        ({"prompt_token_ids": [50] * 16_384}, GREEDY, ContextLengthExceeded),
        ("Hello", SamplingParams(max_tokens=16_384), ContextLengthExceeded),
    ],
)
def test_what_cannot_be_served_is_refused_before_anything_runs(
    llm: LLM, prompts: Any, params: Any, error: type[Exception]
) -> None:
    with pytest.raises(error):
        llm.generate(prompts, params, use_tqdm=False)
    assert len(llm.generate("Hello", GREEDY, use_tqdm=False)[0].outputs[0].token_ids) == 8


def test_ctrl_c_leaves_a_usable_engine(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = 0
    step = EngineCore.step

    def interrupted(self: EngineCore, *args: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 3:
            raise KeyboardInterrupt
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(EngineCore, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            llm.generate(["Hello"] * 6, SamplingParams(max_tokens=50, ignore_eos=True), use_tqdm=False)
    assert len(llm.generate("Hello", GREEDY, use_tqdm=False)[0].outputs[0].token_ids) == 8


def assert_usable_and_empty(llm: LLM, num_free_blocks: int) -> None:
    assert not llm._core.scheduler.has_unfinished()
    assert llm._core.scheduler.kv_cache.pool.num_free_blocks == num_free_blocks
    assert len(llm.generate("Hello", GREEDY, use_tqdm=False)[0].outputs[0].token_ids) == 8


@pytest.mark.parametrize("method", ["launch", "collect"])
@pytest.mark.parametrize("step", [1, 3])
def test_an_interrupt_within_a_step_leaves_nothing_behind(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, method: str, step: int
) -> None:
    num_free_blocks = llm._core.scheduler.kv_cache.pool.num_free_blocks
    runner: Any = llm._core.runner
    original = getattr(runner, method)
    num_calls = 0

    def interrupted(*args: Any) -> Any:
        nonlocal num_calls
        num_calls += 1
        if num_calls == step:
            raise KeyboardInterrupt
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(runner, method, interrupted)
        with pytest.raises(KeyboardInterrupt):
            llm.generate(["Hello"] * 6, SamplingParams(max_tokens=50, ignore_eos=True, n=2), use_tqdm=False)
    assert_usable_and_empty(llm, num_free_blocks)


def test_ctrl_c_itself_waits_for_the_end_of_the_step(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    num_free_blocks = llm._core.scheduler.kv_cache.pool.num_free_blocks
    runner: Any = llm._core.runner
    collect = runner.collect
    num_collected = 0

    def pressed(*args: Any) -> Any:
        nonlocal num_collected
        signal.raise_signal(signal.SIGINT)
        num_collected += 1
        return collect(*args)

    with monkeypatch.context() as patch:
        patch.setattr(runner, "collect", pressed)
        with pytest.raises(KeyboardInterrupt):
            llm.generate(["Hello"] * 6, SamplingParams(max_tokens=50, ignore_eos=True), use_tqdm=False)
    assert num_collected == 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert_usable_and_empty(llm, num_free_blocks)


def test_a_second_ctrl_c_does_not_wait(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    num_free_blocks = llm._core.scheduler.kv_cache.pool.num_free_blocks
    runner: Any = llm._core.runner

    def pressed_twice(*_: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the second one was ignored")

    with monkeypatch.context() as patch:
        patch.setattr(runner, "collect", pressed_twice)
        with pytest.raises(KeyboardInterrupt):
            llm.generate(["Hello"] * 6, SamplingParams(max_tokens=50, ignore_eos=True), use_tqdm=False)
    assert_usable_and_empty(llm, num_free_blocks)


def test_chat_answers_what_generate_answers_to_the_same_prompt(llm: LLM) -> None:
    conversations = [[{"role": "user", "content": text}] for text in ("Count from 3 to 9.", "What is Galley?")]
    params = SamplingParams(temperature=0, max_tokens=32)
    answers = llm.chat(conversations, params, use_tqdm=False)
    assert answers[0].outputs[0].text == "3 4 5 6 7 8 9"
    again = llm.generate([answer.prompt or "" for answer in answers], params, use_tqdm=False)
    assert [result.outputs[0].text for result in again] == [answer.outputs[0].text for answer in answers]
    assert [result.finished for result in again] == [True, True]


@pytest.mark.parametrize("settings", [{"max_num_seqs": 0}, {"dtype": "int8"}, {"max_model_len": 10**6}])
def test_an_unusable_setting_is_a_value_error(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(settings))):
        LLM(MODEL, **settings)


def test_an_unknown_setting_is_a_type_error_and_a_missing_directory_a_value_error() -> None:
    with pytest.raises(TypeError):
        LLM(MODEL, max_seqs=4)
    for missing in ("", "/nowhere/at/all"):
        with pytest.raises(ValueError, match="directory"):
            LLM(missing)
