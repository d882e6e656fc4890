"""The scheduler's decisions, one by one; its invariants are in tests/property."""

import pytest

from engine.api import EngineConfig, Overloaded
from engine.core import EngineCore
from engine.kv_cache import KVCacheManager
from engine.scheduler import Scheduler
from engine.sequence import SchedulerOutput, Sequence
from tests.engine.scripted import model_info, request, runner_for


def scheduler(num_blocks: int = 100, seqs: int = 8, budget: int = 64, waiting: int = 4) -> Scheduler:
    return Scheduler(
        KVCacheManager(num_blocks, 16), max_num_seqs=seqs, max_num_batched_tokens=budget, max_num_waiting=waiting
    )


def sequence(num_tokens: int, request_id: int = 0) -> Sequence:
    return Sequence.from_request(request(request_id, [10] * num_tokens, max_tokens=50), 1, 0, base_seed=0)


def counts(output: SchedulerOutput) -> list[int]:
    return [num_tokens for _, num_tokens in output.scheduled]


def compute(output: SchedulerOutput) -> None:
    """As if the step had run: the tokens are computed, and whoever reached its end has a new one."""
    for item, num_tokens in output.scheduled:
        item.num_computed_tokens += num_tokens
        if item.num_uncomputed_tokens == 0:
            item.token_ids.append(11)


def test_a_long_prompt_is_cut_to_the_budget_and_decodes_go_first() -> None:
    tested = scheduler(budget=64)
    tested.add([sequence(10)])
    compute(tested.schedule())
    tested.add([sequence(100)])
    steps = []
    for _ in range(3):
        output = tested.schedule()
        steps.append(counts(output))
        compute(output)
    assert steps == [[1, 63], [1, 37], [1, 1]]


def test_first_come_first_served_up_to_max_num_seqs() -> None:
    tested = scheduler(seqs=2)
    sequences = [sequence(5, i) for i in range(3)]
    tested.add(sequences)
    assert [s for s, _ in tested.schedule().scheduled] == sequences[:2]
    assert (tested.num_running, tested.num_waiting) == (2, 1)


def test_the_youngest_is_preempted_and_comes_back_first() -> None:
    tested = scheduler(num_blocks=5)  # 4 usable blocks of 16 tokens
    old, young, late = sequence(31, 0), sequence(32, 1), sequence(5, 2)
    tested.add([old, young])
    compute(tested.schedule())
    tested.add([late])
    compute(tested.schedule())  # old: 32 tokens in 2 blocks; young needs a 3rd for its 33rd token: preempts itself
    assert young.num_computed_tokens == 0
    assert young.block_ids == []
    output = tested.schedule()  # old takes its 3rd block
    assert [s for s, _ in output.scheduled] == [old]
    tested.finish(old, "stop")
    assert [s for s, _ in tested.schedule().scheduled] == [young, late]


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
    tested.schedule()
    tested.finish(second, "abort")
    tested.finish(first, "abort")
    assert not tested.has_unfinished()
    assert tested.kv_cache.pool.num_free_blocks == tested.kv_cache.pool.num_usable_blocks
    assert not tested.schedule().scheduled


def test_a_request_id_in_use_is_refused() -> None:
    config = EngineConfig(block_size=16)
    core = EngineCore(config, model_info(), runner_for(config, 50))
    core.add_request(1, request(1, [10]))
    with pytest.raises(ValueError, match="twice"):
        core.add_request(1, request(1, [10]))
    core.add_request(2, request(1, [10]))
