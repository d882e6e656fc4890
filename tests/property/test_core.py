"""Properties of the core with its scheduler and block pool, over random traffic and a runner that checks every step."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.api import EngineConfig, Overloaded, RequestFailed
from engine.core import EngineCore
from engine.kv_cache import BlockPool
from tests.engine.scripted import expected_tokens, model_info, request, runner_for

CLIENTS = st.integers(1, 3)
ARRIVAL = st.tuples(
    st.just("add"), CLIENTS, st.lists(st.integers(10, 900), min_size=1, max_size=120), st.integers(1, 40),
    st.integers(1, 3),
)  # fmt: skip
ACTION = st.one_of(
    ARRIVAL,
    st.tuples(st.just("abort"), CLIENTS, st.integers(0, 30)),
    st.tuples(st.just("leave"), CLIENTS),
    st.tuples(st.just("step"), st.integers(1, 5)),
)


class Traffic:
    """Drives a core, and keeps the books on what every sequence should have become."""

    def __init__(self, num_blocks: int, max_num_seqs: int, budget: int) -> None:
        config = EngineConfig(
            block_size=16, max_num_seqs=max_num_seqs, max_num_batched_tokens=budget, max_num_waiting=12
        )
        self.runner = runner_for(config, num_blocks)
        self.core = EngineCore(config, model_info(max_model_len=170), self.runner)
        self.expected: dict[tuple[int, int, int], list[int]] = {}
        self.tokens: dict[tuple[int, int, int], list[int]] = {}
        self.ended: dict[tuple[int, int, int], str] = {}
        self.next_id = 0

    def apply(self, action: tuple) -> None:
        if action[0] == "add":
            self.add(*action[1:])
        elif action[0] == "abort":
            self.core.abort(action[1], action[2])
            self.forget(action[1], action[2])
        elif action[0] == "leave":
            self.core.abort_client(action[1])
            self.forget(action[1], None)
        else:
            for _ in range(action[1]):
                self.step()

    def add(self, client: int, prompt: list[int], max_tokens: int, n: int) -> None:
        try:
            self.core.add_request(client, request(self.next_id, prompt, max_tokens=max_tokens, n=n, ignore_eos=True))
        except Overloaded:
            return
        for index in range(n):
            self.expected[client, self.next_id, index] = expected_tokens(prompt, max_tokens)
            self.tokens[client, self.next_id, index] = []
        self.next_id += 1

    def forget(self, client: int, request_id: int | None) -> None:
        for key in list(self.expected):
            if key[0] == client and request_id in (None, key[1]) and key not in self.ended:
                del self.expected[key]

    def step(self) -> None:
        for item in self.core.step():
            assert not isinstance(item.message, RequestFailed)
            key = (item.client_id, item.message.request_id, item.message.index)
            assert key in self.expected, "an aborted sequence still speaks"
            assert key not in self.ended, "a sequence ended twice"
            self.tokens[key] += item.message.new_token_ids
            if item.message.finish_reason is not None:
                self.ended[key] = item.message.finish_reason
        pool = self.core.scheduler.kv_cache.pool
        held = [block for sequence in self.core.scheduler.unfinished() for block in sequence.block_ids]
        assert len(set(held)) == len(held), "a block has two writers"
        assert len(held) + pool.num_free_blocks == pool.num_usable_blocks


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    actions=st.lists(ACTION, max_size=30),
    num_blocks=st.integers(12, 40),
    max_num_seqs=st.integers(1, 8),
    budget=st.integers(1, 64),
)
def test_every_admitted_sequence_ends_once_with_its_own_tokens(
    actions: list[tuple], num_blocks: int, max_num_seqs: int, budget: int
) -> None:
    traffic = Traffic(num_blocks, max_num_seqs, budget)
    for action in actions:
        traffic.apply(action)
    for _ in range(20_000):
        if not traffic.core.has_work():
            break
        traffic.step()
    assert not traffic.core.has_work(), "a sequence waits for ever"
    assert {key: traffic.tokens[key] for key in traffic.expected} == traffic.expected
    assert set(traffic.ended) == set(traffic.expected)
    assert set(traffic.ended.values()) <= {"length"}
    pool = traffic.core.scheduler.kv_cache.pool
    assert pool.num_free_blocks == pool.num_usable_blocks, "after the drain the pool is not as new"


@given(st.lists(st.one_of(st.integers(1, 5), st.just("free")), max_size=60))
def test_block_pool_gives_every_block_once(actions: list) -> None:
    pool = BlockPool(16)
    held: list[list[int]] = []
    for action in actions:
        if action == "free":
            if held:
                pool.free(held.pop(0))
        elif action <= pool.num_free_blocks:
            held.append(pool.allocate(action))
        flat = [block for blocks in held for block in blocks]
        assert len(set(flat)) == len(flat)
        assert 0 not in flat
        assert len(flat) + pool.num_free_blocks == pool.num_usable_blocks == 15


def test_block_pool_refuses_a_double_free() -> None:
    pool = BlockPool(4)
    blocks = pool.allocate(2)
    pool.free(blocks)
    with pytest.raises(ValueError, match="not in use"):
        pool.free(blocks)
    with pytest.raises(ValueError, match="not in use"):
        pool.free([0])
