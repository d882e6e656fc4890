"""The core with a scripted runner: log-probabilities reach the request once each, and min_tokens holds."""

from collections.abc import Sequence as SequenceABC
from typing import Any

import pytest

from engine.api import EngineConfig, RequestOutput, TokenLogprobs
from engine.core import EngineCore
from engine.sequence import SampledTokens, SchedulerOutput, Sequence
from tests.engine.scripted import EOS, ScriptedRunner, expected_tokens, model_info, request, runner_for


def entry(token_id: int, step: int) -> TokenLogprobs:
    return TokenLogprobs(-float(token_id), step, [], [])


class LogprobRunner(ScriptedRunner):
    """Entries say the token and the step that they come from. `script` replaces the tokens of a step."""

    script: SequenceABC[int] = ()

    def sample(self, output: SchedulerOutput) -> SampledTokens:
        tokens, new, prompt = [], [], []
        for (sequence, num_tokens), sampled in zip(output.scheduled, super().sample(output).token_ids, strict=True):
            tokens.append(list(self.script or sampled) if sampled else [])
            new.append([entry(token, self.num_steps) for token in tokens[-1]])
            first = sequence.num_computed_tokens
            last = min(first + num_tokens, sequence.num_prompt_tokens - 1)
            predicted = sequence.token_ids[first + 1 : last + 1] if sequence.num_output_tokens == 0 else []
            prompt.append([entry(token, self.num_steps) for token in predicted])
        return SampledTokens(tokens, new, prompt)


@pytest.fixture(params=[False, True], ids=["one by one", "overlap"])
def overlap(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def core(num_blocks: int = 100, **settings: Any) -> EngineCore:
    config = EngineConfig(block_size=16, **settings)
    model = model_info(max_model_len=min(256, (num_blocks - 1) * 16))
    return EngineCore(config, model, runner_for(config, num_blocks, LogprobRunner))


def run(tested: EngineCore) -> list[RequestOutput]:
    outputs = []
    while tested.has_work():
        outputs += tested.step().get(1, [])
    return outputs


def test_prompt_entries_come_once_with_the_first_output_though_the_prompt_is_cut(overlap: bool) -> None:
    tested, prompt = core(max_num_batched_tokens=7, async_scheduling=overlap), list(range(10, 60))
    tested.add_request(1, request(1, prompt, max_tokens=3, prompt_logprobs=0, logprobs=0, ignore_eos=True, n=2))
    outputs = run(tested)
    for index in range(2):
        mine = [output for output in outputs if output.index == index]
        assert [output.prompt_logprobs is None for output in mine] == [False, True, True]
        assert [-e.logprob for e in mine[0].prompt_logprobs or []] == prompt[1:]
        assert [-e.logprob for output in mine for e in output.logprobs or []] == expected_tokens(prompt, 3, index)


def test_a_prompt_of_one_token_has_none_and_says_so(overlap: bool) -> None:
    tested = core(async_scheduling=overlap)
    tested.add_request(1, request(1, [10], max_tokens=1, prompt_logprobs=3))
    tested.add_request(1, request(2, [10], max_tokens=1))
    first, second = run(tested)
    assert (first.prompt_logprobs, first.logprobs) == ([], None)
    assert (second.prompt_logprobs, second.logprobs) == (None, None)


def test_what_was_gathered_before_a_preemption_is_kept(overlap: bool) -> None:
    # An older sequence grows through the blocks, so that a younger one loses its own in mid-prompt.
    tested = core(num_blocks=11, max_num_batched_tokens=3, async_scheduling=overlap)
    prompt = list(range(100, 200))
    tested.add_request(1, request(1, [10] * 20, max_tokens=100, ignore_eos=True))
    tested.add_request(1, request(2, prompt, max_tokens=5, prompt_logprobs=0, ignore_eos=True))
    preempted: list[tuple[int, int]] = []
    release = tested.scheduler.kv_cache.release

    def watched(sequence: Sequence) -> None:
        if sequence.finish_reason is None:
            preempted.append((sequence.num_computed_tokens, sequence.num_output_tokens))
        release(sequence)

    tested.scheduler.kv_cache.release = watched  # type: ignore[method-assign]
    steps: list[int] = []
    for output in run(tested):
        if output.request_id == 2 and output.prompt_logprobs is not None:
            assert not steps, "sent twice"
            assert [-e.logprob for e in output.prompt_logprobs] == prompt[1:]
            steps = [e.rank for e in output.prompt_logprobs]
    assert steps == sorted(steps)
    assert any(computed and not num_output for computed, num_output in preempted), "nobody lost its blocks"


@pytest.mark.parametrize(("min_tokens", "ends_after"), [(0, 1), (2, 3), (4, 5), (6, 6)])
@pytest.mark.parametrize("params", [{}, {"stop_token_ids": (EOS,), "ignore_eos": True}])
def test_nothing_but_the_length_ends_before_min_tokens(
    overlap: bool, min_tokens: int, ends_after: int, params: dict
) -> None:
    tested = core(async_scheduling=overlap)
    tested.runner.script = [EOS]  # type: ignore[attr-defined]
    tested.add_request(1, request(1, [10], max_tokens=6, min_tokens=min_tokens, **params))
    outputs = run(tested)
    assert len(outputs) == ends_after
    assert outputs[-1].finish_reason == ("length" if min_tokens == 6 else "stop")
