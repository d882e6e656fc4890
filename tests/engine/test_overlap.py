"""A step is scheduled and launched while the one before it runs: what ends, waits or fails in between.

The files beside this one run their tests with and without overlap; here is what only happens with it, and that the
outputs are the same.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.api import EngineConfig, GenerateRequest, GenerationFailed, RequestOutput
from engine.core import EngineCore
from engine.sequence import NO_ROW, SchedulerOutput, Sequence
from tests.engine.scripted import ScriptedRunner, ScriptedStep, expected_tokens, model_info, request, runner_for

BLOCK_SIZE = 16
PROMPT = [20 + i for i in range(40)]
WORDS = ((1, 2),)  # bad words of several tokens: the scripted runner waits for tokens, as one on a GPU does


class Served:
    """A core on a scripted runner, and the outputs of its one client by request."""

    def __init__(self, num_blocks: int = 50, overlap: bool = True, **options: Any) -> None:
        config = EngineConfig(block_size=BLOCK_SIZE, async_scheduling=overlap, **options)
        self.runner = runner_for(config, num_blocks)
        self.core = EngineCore(config, model_info(), self.runner)
        self.pool = self.core.scheduler.kv_cache.pool
        self.outputs: dict[int, list[RequestOutput]] = {}
        self.steps: list[list[int]] = []  # the request ids in each launched step
        launch = self.runner.launch

        def recorded(output: SchedulerOutput) -> ScriptedStep:
            self.steps.append([sequence.request.request_id for sequence, _ in output.scheduled])
            return launch(output)

        self.runner.launch = recorded  # type: ignore[method-assign]

    def ask(self, request_id: int, prompt: list[int], max_tokens: int, **options: Any) -> None:
        self.core.add_request(1, request(request_id, prompt, max_tokens=max_tokens, ignore_eos=True, **options))
        self.outputs[request_id] = []

    def step(self, on_launched: Callable[[], None] = lambda: None) -> None:
        for output in self.core.step(on_launched).get(1, []):
            self.outputs[output.request_id].append(output)

    def drain(self) -> None:
        while self.core.has_work():
            self.step()
        assert self.pool.num_free_blocks == self.pool.num_usable_blocks

    def fail(self) -> list[int]:
        """A step that raises; the requests that fail with it."""
        with pytest.raises(RuntimeError):
            self.step()
        return [item.message.request_id for item in self.core.fail_step(GenerationFailed("scripted"))]

    def tokens(self, request_id: int, index: int = 0) -> list[int]:
        return [t for output in self.outputs[request_id] if output.index == index for t in output.new_token_ids]

    def reason(self, request_id: int) -> str | None:
        return self.outputs[request_id][-1].finish_reason


def test_a_step_is_launched_before_the_one_before_it_is_collected() -> None:
    served = Served()
    served.ask(0, PROMPT, 5)
    for num_launched, num_known in ((1, 0), (2, 1), (3, 2)):
        served.step()
        assert (len(served.steps), len(served.outputs[0])) == (num_launched, num_known)
    seen: list[int] = []
    served.step(lambda: seen.append(len(served.runner.in_flight)))
    assert seen == [2], "`on_launched` runs while both are on the device"


def test_the_device_decides_whether_steps_overlap_if_nobody_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    for device_type, num_in_flight in (("cpu", 0), ("cuda", 1)):
        monkeypatch.setattr(ScriptedRunner, "device_type", device_type)
        config = EngineConfig(block_size=BLOCK_SIZE)
        runner = runner_for(config, 50)
        core = EngineCore(config, model_info(), runner)
        core.add_request(1, request(0, PROMPT, max_tokens=9))
        core.step()
        assert len(runner.in_flight) == num_in_flight


@pytest.mark.parametrize("overlap", [False, True])
def test_a_stop_token_costs_the_step_that_runs_meanwhile_and_no_other(overlap: bool) -> None:
    served = Served(overlap=overlap)
    tokens = expected_tokens(PROMPT, 5)
    served.ask(0, PROMPT, 50, stop_token_ids=(tokens[4],))
    while not served.outputs[0] or served.reason(0) is None:
        served.step()
    assert served.pool.num_free_blocks == served.pool.num_usable_blocks, "freed at once, though a step still runs"
    assert served.core.has_work() == overlap
    served.drain()
    assert (served.tokens(0), served.reason(0)) == (tokens, "stop")
    assert served.outputs[0][-1].stop_token_id == tokens[4]
    assert len(served.steps) == 5 + overlap


@pytest.mark.parametrize("max_tokens", [1, 2, 9, None])
def test_what_ends_by_its_length_costs_no_step_more(max_tokens: int | None) -> None:
    served = Served()
    num_tokens = max_tokens or 256 - len(PROMPT)
    served.ask(0, PROMPT, max_tokens)  # type: ignore[arg-type]
    served.drain()
    assert (served.tokens(0), served.reason(0)) == (expected_tokens(PROMPT, num_tokens), "length")
    assert len(served.steps) == num_tokens


def test_blocks_and_rows_of_what_has_ended_go_to_others_while_its_step_runs() -> None:
    served = Served(num_blocks=18, max_num_seqs=1)
    tokens = expected_tokens(PROMPT, 3)
    served.ask(0, PROMPT, 200, stop_token_ids=(tokens[2],))
    served.ask(1, [9] * 240, 5)  # takes nearly all blocks, and the only row
    served.drain()
    assert (served.tokens(0), served.tokens(1)) == (tokens, expected_tokens([9] * 240, 5))


def test_an_abort_between_launch_and_collect_drops_what_both_steps_sampled() -> None:
    served = Served(max_num_seqs=2)
    for request_id in range(3):
        served.ask(request_id, [request_id + 10, *PROMPT], 20)
    for _ in range(4):
        served.step()
    served.step(lambda: served.core.abort(1, 0))
    assert len(served.outputs[0]) == 3
    served.drain()
    assert len(served.outputs[0]) == 3
    assert [served.tokens(i) for i in (1, 2)] == [expected_tokens([i + 10, *PROMPT], 20) for i in (1, 2)]


def test_a_step_of_which_nobody_is_left_is_collected_and_says_nothing() -> None:
    served = Served()
    served.ask(0, PROMPT, 20)
    served.step()
    served.core.abort_client(1)
    assert served.core.has_work()
    assert served.core.step() == {}
    assert not served.core.has_work() and not served.runner.in_flight


def test_a_sequence_whose_token_the_host_must_know_runs_in_every_other_step() -> None:
    served = Served()
    served.ask(0, PROMPT, 30)
    served.ask(1, [9, *PROMPT], 12, bad_words_ids=WORDS)
    served.drain()
    assert served.tokens(0) == expected_tokens(PROMPT, 30)
    assert served.tokens(1) == expected_tokens([9, *PROMPT], 12)
    turns = [1 in step for step in served.steps]
    assert turns[:23] == [i % 2 == 0 for i in range(23)] and not any(turns[23:])
    assert len(served.steps) == 30, "the other one waits for nothing"


def test_alone_it_runs_as_without_overlap() -> None:
    served = Served()
    served.ask(0, PROMPT, 12, bad_words_ids=WORDS)
    served.drain()
    assert served.tokens(0) == expected_tokens(PROMPT, 12)
    assert len(served.steps) == 12


def two_that_outgrow_the_cache(num_old: int, num_young: int) -> tuple[Served, list[tuple[int, str | None]]]:
    """An old sequence and a young one; how many tokens pended, and what had ended, whenever a waiting one changed."""
    served = Served(num_blocks=18, enable_prefix_caching=False)
    events: list[tuple[int, str | None]] = []
    release, finish = served.core.scheduler.kv_cache.release, served.core.scheduler.finish

    def released(sequence: Sequence) -> None:
        if sequence.finish_reason is None:
            events.append((sequence.num_pending_tokens, None))
        release(sequence)

    def finished(sequence: Sequence, reason: Any) -> None:
        if sequence.row == NO_ROW:
            events.append((sequence.num_pending_tokens, reason))
        finish(sequence, reason)

    served.core.scheduler.kv_cache.release = released  # type: ignore[method-assign]
    served.core.scheduler.finish = finished  # type: ignore[method-assign]
    served.ask(0, PROMPT, num_old)
    served.ask(1, [9, *PROMPT], num_young)
    return served, events


def test_a_preempted_sequence_keeps_the_token_that_is_under_way() -> None:
    served, events = two_that_outgrow_the_cache(160, 160)
    served.drain()
    assert events == [(1, None)]
    assert served.tokens(0) == expected_tokens(PROMPT, 160)
    assert served.tokens(1) == expected_tokens([9, *PROMPT], 160)


def test_a_preempted_sequence_may_end_while_it_waits() -> None:
    num_ended_waiting = 0
    for num_young in range(85, 110):
        served, events = two_that_outgrow_the_cache(160, num_young)
        served.drain()
        assert served.tokens(0) == expected_tokens(PROMPT, 160)
        assert (served.tokens(1), served.reason(1)) == (expected_tokens([9, *PROMPT], num_young), "length")
        num_ended_waiting += events == [(1, None), (0, "length")]
    assert num_ended_waiting == 1


def test_a_preempted_sequence_is_not_admitted_before_its_token_is_known() -> None:
    served, events = two_that_outgrow_the_cache(160, 160)
    while not events:
        served.runner.fail_next = bool(served.core.scheduler.kv_cache.pool.num_free_blocks == 0)
        try:
            served.step()
        except RuntimeError:
            failed = [item.message.request_id for item in served.core.fail_step(GenerationFailed("scripted"))]
            if not events:
                pytest.fail("the step before the preemption was to be the last one that fits")
    assert failed == [0], "the young one was not in the step that could not be launched"
    num_known = len(served.tokens(1))
    served.step()
    assert served.core.scheduler.num_waiting == 1
    assert len(served.tokens(1)) == num_known + 1
    served.drain()
    assert served.tokens(1) == expected_tokens([9, *PROMPT], 160)


def one_at_its_last_token_and_one_that_comes() -> Served:
    """Request 0 is only in the step that runs, request 1 only in the next."""
    served = Served()
    served.ask(0, PROMPT, 3)
    while len(served.steps) < 3:
        served.step()
    assert len(served.outputs[0]) == 2
    served.ask(1, [9, *PROMPT], 3)
    return served


def test_a_step_that_cannot_be_launched_fails_alone() -> None:
    served = one_at_its_last_token_and_one_that_comes()
    served.runner.fail_next = True
    assert served.fail() == [1]
    served.step()
    assert (served.tokens(0), served.reason(0)) == (expected_tokens(PROMPT, 3), "length")
    served.ask(2, [9, *PROMPT], 3)
    served.drain()
    assert served.tokens(2) == expected_tokens([9, *PROMPT], 3)
    assert served.outputs[2][0].usage.num_cached_tokens == 0  # type: ignore[union-attr]


def test_a_step_that_cannot_be_collected_takes_the_one_behind_it_along() -> None:
    served = one_at_its_last_token_and_one_that_comes()
    served.runner.fail_next_collect = True
    assert served.fail() == [0, 1]
    assert not served.core.has_work()
    served.ask(2, [9, *PROMPT], 3)
    served.drain()
    assert served.tokens(2) == expected_tokens([9, *PROMPT], 3)
    assert served.outputs[2][0].usage.num_cached_tokens == 0  # type: ignore[union-attr]


def test_a_block_that_was_named_late_loses_its_name_with_the_step_that_filled_it() -> None:
    served = Served()
    served.ask(0, PROMPT, 50)
    tokens = expected_tokens(PROMPT, 50)
    while len(served.outputs[0]) < 8:  # 48 known tokens: three full blocks, the last one filled by the step that runs
        served.step()
    assert len(list(filter(None, map(served.pool.hash_of, range(50))))) == 3
    served.runner.fail_next_collect = True
    assert served.fail() == [0]
    served.ask(1, [*PROMPT, *tokens[:9]], 1)
    served.drain()
    assert served.outputs[1][0].usage.num_cached_tokens == 32  # type: ignore[union-attr]


def test_an_error_of_the_caller_leaves_the_step_to_be_collected() -> None:
    for overlap in (False, True):
        served = Served(overlap=overlap)
        served.ask(0, PROMPT, 6)
        for _ in range(4):
            with pytest.raises(ZeroDivisionError):
                served.step(lambda: print(1 // 0))
            assert served.core.fail_step(GenerationFailed("scripted")) == []
            served.step()
        served.drain()
        assert served.tokens(0) == expected_tokens(PROMPT, 6)


Summary = dict[tuple[int, int], tuple[list[int], str | None, tuple[int, int] | None]]


def serve_all(
    requests: list[GenerateRequest], aborts: dict[tuple[int, int], int], overlap: bool, **options: Any
) -> Summary:
    """What each sequence says, how it ends, and its token counts. A sample is aborted after so many tokens."""
    config = EngineConfig(block_size=BLOCK_SIZE, async_scheduling=overlap, max_num_waiting=10**6, **options)
    core = EngineCore(config, model_info(), runner_for(config, 18))
    for made in requests:
        core.add_request(1, made)
    result: Summary = {(made.request_id, i): ([], None, None) for made in requests for i in range(made.params.n)}
    while core.has_work():
        for output in core.step().get(1, []):
            key = (output.request_id, output.index)
            tokens, reason, _ = result[key]
            assert reason is None, "a sequence that has ended still speaks"
            tokens += output.new_token_ids
            usage = output.usage and (output.usage.num_prompt_tokens, output.usage.num_output_tokens)
            result[key] = (tokens, output.finish_reason, usage)
            if aborts.get(key) == len(tokens) and output.finish_reason is None:
                core.abort(1, *key)
                result[key] = (tokens, "abort", None)
    pool = core.scheduler.kv_cache.pool
    assert pool.num_free_blocks == pool.num_usable_blocks
    return result


@st.composite
def traffic(draw: st.DrawFn) -> tuple[list[GenerateRequest], dict[tuple[int, int], int]]:
    requests, aborts = [], {}
    for request_id in range(draw(st.integers(1, 8))):
        family = draw(st.sampled_from([20, 500]))
        prompt = [family + i for i in range(draw(st.integers(1, 100)))] + [draw(st.integers(10, 19))]
        max_tokens = draw(st.integers(1, 90))
        made = request(
            request_id,
            prompt,
            max_tokens=max_tokens,
            ignore_eos=True,
            n=draw(st.sampled_from([1, 1, 3])),
            min_tokens=draw(st.integers(0, 5)) if max_tokens > 5 else 0,
            stop_token_ids=tuple(draw(st.lists(st.sampled_from(expected_tokens(prompt, max_tokens)), max_size=2))),
            priority=draw(st.sampled_from([0, 0, -1, 1])),
            bad_words_ids=draw(st.sampled_from([(), (), WORDS])),
        )
        requests.append(made)
        for index in range(made.params.n):
            aborts[request_id, index] = draw(st.sampled_from([0, 0, 1, 5, 20]))
    return requests, aborts


@settings(max_examples=max(150, settings().max_examples), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(traffic(), st.integers(1, 6), st.sampled_from([7, 64, 400]), st.booleans())
def test_the_outputs_are_those_without_overlap(
    made: tuple[list[GenerateRequest], dict[tuple[int, int], int]], max_num_seqs: int, budget: int, caching: bool
) -> None:
    """Preemptions, shared prefixes, stop tokens, aborts: what a sequence says does not tell how steps were launched."""
    options = {"max_num_seqs": max_num_seqs, "max_num_batched_tokens": budget, "enable_prefix_caching": caching}
    assert serve_all(*made, overlap=True, **options) == serve_all(*made, overlap=False, **options)


@settings(max_examples=max(60, settings().max_examples), deadline=None)
@given(st.lists(st.tuples(st.integers(0, 70), st.integers(1, 5), st.integers(1, 60), st.booleans()), max_size=6))
def test_one_after_another_they_find_the_same_in_the_cache(asked: list[tuple[int, int, int, bool]]) -> None:
    """Turns of a conversation that begins again somewhere each time; some end by a stop token."""
    found: list[list[tuple[list[int], Any]]] = []
    for overlap in (False, True):
        served, conversation = Served(overlap=overlap), PROMPT
        found.append([])
        for request_id, (num_kept, new_token, max_tokens, stops) in enumerate(asked):
            prompt = [*conversation[:num_kept], new_token]
            stop_ids = (expected_tokens(prompt, max_tokens)[-1],) if stops else ()
            served.ask(request_id, prompt, max_tokens + 3 * stops, stop_token_ids=stop_ids)
            served.drain()
            conversation = prompt + served.tokens(request_id)
            found[-1].append((served.tokens(request_id), served.outputs[request_id][-1].usage))
        kv_cache = served.core.scheduler.kv_cache
        found[-1].append(([kv_cache.num_prefix_query_tokens, kv_cache.num_prefix_hit_tokens], None))
        assert Counter(map(served.pool.ref_count, range(50))) == {0: 50}
    assert found[0] == found[1]
