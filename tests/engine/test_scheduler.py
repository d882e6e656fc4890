"""The scheduler's decisions, one by one; its invariants are in tests/property."""

import pytest

from engine.api import MAX_PRIORITY, EngineConfig, InvalidRequest, Overloaded
from engine.core import EngineCore
from engine.kv_cache import KVCacheManager
from engine.scheduler import PRIORITY_WEIGHT, Scheduler
from engine.sequence import SchedulerOutput, Sequence
from tests.engine.scripted import model_info, request, runner_for


def scheduler(num_blocks: int = 100, seqs: int = 8, budget: int = 64, waiting: int = 4) -> Scheduler:
    return Scheduler(
        KVCacheManager(num_blocks, 16), max_num_seqs=seqs, max_num_batched_tokens=budget, max_num_waiting=waiting
    )


def sequence(num_tokens: int, request_id: int = 0, priority: int = 0) -> Sequence:
    """Its tokens are like those of no other request id."""
    prompt = [request_id, *[10] * (num_tokens - 1)]
    return Sequence.from_request(request(request_id, prompt, max_tokens=50, priority=priority), 1, 0, base_seed=0)


def counts(output: SchedulerOutput) -> list[int]:
    return [num_tokens for _, num_tokens in output.scheduled]


def run(tested: Scheduler) -> SchedulerOutput:
    """A step, as if it had been computed: whoever reached its end has a new token."""
    output = tested.schedule()
    tested.commit()
    for item, num_tokens in output.scheduled:
        item.num_computed_tokens += num_tokens
        if item.num_uncomputed_tokens == 0:
            item.token_ids.append(11)
    return output


def test_a_long_prompt_is_cut_to_the_budget_and_decodes_go_first() -> None:
    tested = scheduler(budget=64)
    tested.add([sequence(10)])
    run(tested)
    tested.add([sequence(100, 1)])
    assert [counts(run(tested)) for _ in range(3)] == [[1, 63], [1, 37], [1, 1]]


def test_decodes_go_before_a_prompt_that_stands_before_them() -> None:
    tested = scheduler(budget=64)
    tested.add([sequence(10)])
    run(tested)
    first, streaming = sequence(200, 1, priority=-1), tested._running[0]
    tested.add([first])
    assert [s for s, _ in run(tested).scheduled] == [streaming, first]
    assert run(tested).scheduled == ((streaming, 1), (first, 63))


def test_a_long_prompt_leaves_a_part_of_the_budget_to_short_ones_behind_it() -> None:
    tested = scheduler(budget=64)
    tested.add([sequence(200, 0)])
    tested.add([sequence(10, 1)])
    assert counts(run(tested)) == [54, 10]  # what the short one left goes back
    tested.add([sequence(300, 2)])
    assert counts(run(tested)) == [1, 48, 15]  # two long ones: three quarters of 63, and the rest


def test_no_more_sequences_run_than_the_budget_has_tokens() -> None:
    tested = scheduler(seqs=8, budget=3, waiting=9)
    sequences = [sequence(1, i) for i in range(5)]
    tested.add(sequences)
    for _ in range(3):
        assert [s for s, _ in run(tested).scheduled] == sequences[:3], "all that run get a token in each step"
    tested.finish(sequences[1], "stop")
    assert [s for s, _ in run(tested).scheduled] == [sequences[0], sequences[2], sequences[3]]


def test_first_come_first_served_up_to_max_num_seqs() -> None:
    tested = scheduler(seqs=2)
    sequences = [sequence(5, i) for i in range(3)]
    tested.add(sequences)
    assert [s for s, _ in run(tested).scheduled] == sequences[:2]
    assert (tested.num_running, tested.num_waiting) == (2, 1)


def test_a_better_priority_goes_first_but_not_for_ever() -> None:
    tested = scheduler(seqs=1, waiting=10**6)
    tested.add([sequence(5, 0)])
    run(tested)
    late, urgent = sequence(5, 1, priority=1), sequence(5, 2, priority=-1)
    tested.add([late])
    tested.add([urgent])
    for i in range(PRIORITY_WEIGHT + 10):
        tested.add([sequence(5, 3 + i)])
    served = []
    while late not in served:
        served.append(tested._running[0])
        tested.finish(served[-1], "stop")
        run(tested)
    assert served[1] is urgent
    assert len(served) == PRIORITY_WEIGHT + 1, "all that came less than so many requests after it"


def preempted_pair() -> tuple[Scheduler, Sequence, Sequence]:
    """Two sequences of two blocks each in a pool of four and the watermark's one; the younger is preempted."""
    tested = scheduler(num_blocks=6)
    old, young = sequence(30, 0), sequence(30, 1)
    tested.add([old, young])
    run(tested)  # 2 + 2 blocks
    for _ in range(2):
        run(tested)
    assert (old.num_tokens, young.num_tokens) == (33, 33)
    run(tested)  # each needs a third block for token 32: there is one
    return tested, old, young


def test_who_is_last_in_the_order_is_preempted() -> None:
    tested, old, young = preempted_pair()
    assert tested.num_preemptions == young.num_preemptions == 1
    assert (young.num_computed_tokens, young.block_ids) == (0, [])
    late = sequence(3, 2)
    tested.add([late])
    assert [s for s, _ in run(tested).scheduled] == [old], "nobody passes who was preempted"
    tested.finish(old, "stop")
    output = run(tested)
    assert [s for s, _ in output.scheduled] == [young, late]
    assert young.num_cached_tokens == 0, "its own blocks, found again, are not what the prompt found at first"


def test_a_preempted_sequence_finds_its_own_blocks_again() -> None:
    tested, old, young = preempted_pair()
    tested.finish(old, "abort")
    assert counts(run(tested)) == [1], "its two full blocks were still there"
    assert young.num_tokens == 34


def test_a_better_priority_takes_the_blocks_of_a_worse_one() -> None:
    tested = scheduler(num_blocks=6)
    worse, better = sequence(31, 0, priority=1), sequence(31, 1)
    tested.add([worse])
    run(tested)
    tested.add([better])
    run(tested)
    for _ in range(2):
        run(tested)
    assert (worse.num_preemptions, better.num_preemptions) == (1, 0)


def test_an_admission_leaves_room_to_grow_unless_nobody_runs() -> None:
    tested = scheduler(num_blocks=129, seqs=8, budget=4096)  # 128 blocks: 4 stay free
    tested.add([sequence(100 * 16, 0)])
    run(tested)
    assert tested.kv_cache.pool.num_free_blocks == 28
    too_long = sequence(25 * 16, 1)
    tested.add([too_long])
    assert len(run(tested).scheduled) == 1
    tested.finish(too_long, "abort")
    tested.add([sequence(23 * 16, 2)])
    assert len(run(tested).scheduled) == 2
    alone = scheduler(num_blocks=129, budget=4096)
    alone.add([sequence(128 * 16, 0)])
    assert len(run(alone).scheduled) == 1


def test_the_queue_is_bounded_but_takes_any_request_when_empty() -> None:
    tested = scheduler(seqs=1, waiting=2)
    tested.add([sequence(5) for _ in range(10)])  # n = 10: could never be served otherwise
    with pytest.raises(Overloaded):
        tested.add([sequence(5)])
    assert tested.num_waiting == 10


def test_finishing_frees_at_once_waiting_or_running() -> None:
    tested = scheduler(seqs=1)
    first, second = sequence(20, 0), sequence(20, 1)
    tested.add([first, second])
    run(tested)
    tested.finish(second, "abort")
    tested.finish(first, "abort")
    assert not tested.has_unfinished()
    assert tested.kv_cache.pool.num_free_blocks == tested.kv_cache.pool.num_usable_blocks
    assert not tested.schedule().scheduled


def test_the_queue_keeps_its_order_when_most_of_it_is_aborted() -> None:
    tested = scheduler(seqs=1, waiting=1000)
    sequences = [sequence(5, i, priority=i % 3) for i in range(300)]
    for item in sequences:
        tested.add([item])
    kept = sequences[::7]
    for item in reversed(sequences):
        if item not in kept:
            tested.finish(item, "abort")
    assert tested.num_waiting == len(kept) == len(list(tested.unfinished()))
    served = []
    while tested.has_unfinished():
        served += [s for s, _ in run(tested).scheduled]
        tested.finish(served[-1], "stop")
    assert served == sorted(kept, key=lambda s: (s.request.priority, s.request.request_id))


def test_a_request_id_in_use_is_refused() -> None:
    config = EngineConfig(block_size=16)
    core = EngineCore(config, model_info(), runner_for(config, 50))
    core.add_request(1, request(1, [10]))
    with pytest.raises(ValueError, match="twice"):
        core.add_request(1, request(1, [10]))
    core.add_request(2, request(1, [10]))


def test_what_could_never_run_is_refused() -> None:
    config = EngineConfig(block_size=16)
    with pytest.raises(ValueError, match="max_model_len 256"):
        EngineCore(config, model_info(max_model_len=256), runner_for(config, 16))  # 15 usable blocks
    core = EngineCore(config, model_info(max_model_len=256), runner_for(config, 17))
    for priority in (-MAX_PRIORITY - 1, MAX_PRIORITY + 1):
        with pytest.raises(InvalidRequest, match="priority"):
            core.add_request(1, request(1, [10], priority=priority))
    assert not core.has_work()


def test_a_low_priority_ends_under_a_stream_of_high_ones() -> None:
    config = EngineConfig(block_size=16, max_num_seqs=1, max_num_waiting=10**6)
    core = EngineCore(config, model_info(), runner_for(config, 50))
    core.add_request(1, request(0, [10], max_tokens=3, priority=1, ignore_eos=True))
    core.add_request(2, request(0, [10], max_tokens=3, ignore_eos=True))
    # Two arrive for each that is served: without its age the first would wait for ever.
    limit = 3 * (PRIORITY_WEIGHT + 2)
    for step in range(limit):
        if step % 3 == 0:
            for i in (1, 2):
                core.add_request(2, request(step * 2 + i, [10], max_tokens=3, ignore_eos=True))
        outputs = core.step().get(1, [])
        if any(output.finish_reason is not None for output in outputs):
            break
    else:
        raise AssertionError("the request of low priority starved")
    assert step > 0.9 * limit / 2
