"""The block pool as a state machine, beside a plain model of it: who holds which block, and what each is called."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.kv_cache import BlockPool
from tests.property.profile import at_least

NAMES = st.sampled_from([bytes([i]) for i in range(12)])


class PoolMachine(RuleBasedStateMachine):
    """holders: for each sequence its blocks. names: what each named block is called. idle, kept: named ones that
    nobody holds, least recently used first; those of `kept` were freed to be kept."""

    @initialize(num_blocks=st.integers(2, 12))
    def start(self, num_blocks: int) -> None:
        self.pool = BlockPool(num_blocks)
        self.holders: list[list[int]] = []
        self.names: dict[int, bytes] = {}
        self.idle: list[int] = []
        self.kept: list[int] = []

    def count(self, block_id: int) -> int:
        return sum(block_ids.count(block_id) for block_ids in self.holders)

    @rule(num_blocks=st.integers(1, 5))
    def allocate(self, num_blocks: int) -> None:
        if num_blocks > self.pool.num_free_blocks:
            return
        # Whatever sessions keep, it can be had: only the order in which it goes is theirs.
        evictable = self.idle + self.kept
        num_unnamed = self.pool.num_free_blocks - len(evictable)
        block_ids = self.pool.allocate(num_blocks)
        assert len(set(block_ids)) == num_blocks
        assert all(self.count(block_id) == 0 for block_id in block_ids), "a block in use was handed out"
        # A name is lost only when no block without one was left, and the least recently used goes first.
        evicted = evictable[: max(0, num_blocks - num_unnamed)]
        assert {block_id for block_id in block_ids if block_id in self.names} == set(evicted)
        for block_id in evicted:
            assert self.pool.find(self.names.pop(block_id)) is None
        self.idle = [block_id for block_id in self.idle if block_id not in evicted]
        self.kept = [block_id for block_id in self.kept if block_id not in evicted]
        self.holders.append(block_ids)

    @precondition(lambda self: self.holders)
    @rule(data=st.data(), keep=st.booleans())
    def free(self, data: st.DataObject, keep: bool) -> None:
        block_ids = self.holders.pop(data.draw(st.integers(0, len(self.holders) - 1)))
        self.pool.free(block_ids, keep=keep)
        for block_id in reversed(block_ids):
            if self.count(block_id) == 0 and block_id in self.names:
                (self.kept if keep else self.idle).append(block_id)
                if len(self.kept) > self.pool.num_usable_blocks // 2:
                    self.idle.append(self.kept.pop(0))

    @rule(name=NAMES)
    def let_go(self, name: bytes) -> None:
        block_id = self.pool.find(name)
        self.pool.let_go(name)
        if block_id in self.kept:
            self.kept.remove(block_id)
            self.idle.append(block_id)

    @rule(names=st.lists(NAMES, min_size=1, max_size=4, unique=True))
    def share(self, names: list[bytes]) -> None:
        found = [self.pool.find(name) for name in names]
        by_name = {name: block_id for block_id, name in self.names.items()}
        assert found == [by_name.get(name) for name in names]
        block_ids = [block_id for block_id in found if block_id is not None]
        if block_ids:
            self.pool.share(block_ids)
            self.holders.append(block_ids)
            self.idle = [block_id for block_id in self.idle if block_id not in block_ids]
            self.kept = [block_id for block_id in self.kept if block_id not in block_ids]

    @precondition(lambda self: self.holders)
    @rule(data=st.data(), name=NAMES)
    def name(self, data: st.DataObject, name: bytes) -> None:
        block_id = data.draw(st.sampled_from([b for block_ids in self.holders for b in block_ids]))
        if block_id in self.names:
            return
        self.pool.name(block_id, name)
        if name not in self.names.values():
            self.names[block_id] = name

    @precondition(lambda self: self.names)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        block_id = data.draw(st.sampled_from(sorted(self.names)))
        self.pool.forget(block_id)
        assert self.pool.find(self.names.pop(block_id)) is None
        self.idle = [other for other in self.idle if other != block_id]
        self.kept = [other for other in self.kept if other != block_id]

    @rule(data=st.data())
    def a_block_that_is_not_in_use_cannot_be_freed(self, data: st.DataObject) -> None:
        block_id = data.draw(st.integers(0, self.pool.num_usable_blocks))
        if self.count(block_id) == 0:
            with pytest.raises(ValueError, match="not in use"):
                self.pool.free([block_id])

    @invariant()
    def every_block_is_in_one_place(self) -> None:
        held = {block_id for block_ids in self.holders for block_id in block_ids}
        assert 0 not in held
        assert len(held) + self.pool.num_free_blocks == self.pool.num_usable_blocks
        assert self.pool.num_cached_blocks == len(self.idle) + len(self.kept)
        assert self.pool.num_kept_blocks == len(self.kept) <= self.pool.num_usable_blocks // 2
        for block_id in range(self.pool.num_usable_blocks + 1):
            assert self.pool.ref_count(block_id) == self.count(block_id)
            assert self.pool.hash_of(block_id) == self.names.get(block_id)

    def teardown(self) -> None:
        if hasattr(self, "pool"):
            while self.holders:
                self.pool.free(self.holders.pop())
            assert sorted(self.pool.allocate(self.pool.num_free_blocks)) == list(
                range(1, self.pool.num_usable_blocks + 1)
            )


TestBlockPool = PoolMachine.TestCase
TestBlockPool.settings = at_least(200, num_rules=30)


def test_a_pool_needs_a_block_besides_the_null_block() -> None:
    with pytest.raises(ValueError, match="at least one block"):
        BlockPool(1)
