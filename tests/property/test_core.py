"""The core with its scheduler and block pool as a state machine: random traffic on a runner that checks every step.

The runner keeps what the cache would hold and checks, before it answers, that every sequence finds its own history in
its blocks; this file keeps the books on who was promised what.
"""

import contextlib
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.api import DeadlineExceeded, EngineConfig, GenerationFailed, Overloaded
from engine.core import ClientFailure, ClientOutputs, EngineCore
from tests.engine.scripted import expected_tokens, model_info, request, runner_for
from tests.property.profile import at_least

BLOCK_SIZE = 16
MAX_MODEL_LEN = 170
MAX_DRAIN_STEPS = 20_000
PREFIXES = [[10 + (position * 7 + family * 13) % 900 for position in range(120)] for family in range(3)]
CLIENTS = st.integers(1, 3)
Key = tuple[int, int, int]  # client, request, sample


class CoreMachine(RuleBasedStateMachine):
    overlap = False

    @initialize(
        num_blocks=st.integers(12, 40),
        max_num_seqs=st.integers(1, 8),
        budget=st.one_of(st.integers(1, 12), st.integers(13, 200)),
        is_caching=st.sampled_from([True, True, True, False]),
    )
    def start(self, num_blocks: int, max_num_seqs: int, budget: int, is_caching: bool) -> None:
        config = EngineConfig(
            block_size=BLOCK_SIZE,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=budget,
            max_num_waiting=12,
            enable_prefix_caching=is_caching,
            async_scheduling=self.overlap,
        )
        self.runner = runner_for(config, num_blocks)
        self.core = EngineCore(config, model_info(MAX_MODEL_LEN), self.runner)
        self.pool = self.core.scheduler.kv_cache.pool
        self.is_caching = is_caching
        self.promised: dict[Key, list[int]] = {}  # the tokens of every sequence that has not been given up
        self.stop_ids: dict[Key, tuple[int, ...]] = {}
        self.prompts: dict[Key, list[int]] = {}
        self.deadlines: dict[Key, float] = {}
        self.tokens: dict[Key, list[int]] = {}
        self.ended: set[Key] = set()
        self.conversations: list[list[int]] = []
        self.named: dict[bytes, list[int | None]] = {}
        self.next_id = 0

    def admit(
        self, prompt: list[int], client: int, max_tokens: int, stop_after: int | None = None, **options: object
    ) -> None:
        """`stop_after`: the token of sample 0 at this place ends whichever sample says it first."""
        plain = expected_tokens(prompt, max_tokens)
        stop_ids = () if stop_after is None else (plain[stop_after % max_tokens],)
        made = request(
            self.next_id,
            prompt,
            max_tokens=max_tokens,
            ignore_eos=True,
            stop_token_ids=stop_ids,
            **options,  # type: ignore[arg-type]
        )
        with contextlib.suppress(Overloaded):
            self.core.add_request(client, made)
            for index in range(made.params.n):
                key = (client, self.next_id, index)
                tokens = expected_tokens(prompt, max_tokens, index)
                ends = [place + 1 for place, token in enumerate(tokens) if token in stop_ids]
                self.promised[key] = tokens[: min(ends, default=max_tokens)]
                self.stop_ids[key] = stop_ids
                self.prompts[key], self.deadlines[key], self.tokens[key] = prompt, made.deadline, []
        self.next_id += 1

    @rule(
        client=CLIENTS,
        family=st.sampled_from(PREFIXES),
        num_shared=st.integers(0, 120),
        rest=st.lists(st.integers(10, 900), min_size=1, max_size=12),
        max_tokens=st.integers(1, 38),
        n=st.sampled_from([1, 1, 1, 2, 3]),
        priority=st.sampled_from([0, 0, 0, -1, 1, 1000]),
        salt=st.sampled_from(["", "", "a"]),
        deadline=st.sampled_from([float("inf"), float("inf"), 5.0, 10.0]),
        prompt_logprobs=st.sampled_from([None, None, None, 0]),
        stop_after=st.one_of(st.none(), st.integers(0, 37)),
        bad_words_ids=st.sampled_from([(), (), ((1, 2),)]),
    )
    def ask(
        self,
        client: int,
        family: list[int],
        num_shared: int,
        rest: list[int],
        max_tokens: int,
        salt: str,
        **options: Any,
    ) -> None:
        self.admit(family[:num_shared] + rest, client, max_tokens, cache_salt=salt, **options)

    @precondition(lambda self: self.conversations)
    @rule(data=st.data(), client=CLIENTS, rest=st.lists(st.integers(10, 900), min_size=1, max_size=8))
    def ask_on(self, data: st.DataObject, client: int, rest: list[int]) -> None:
        prompt = [*data.draw(st.sampled_from(self.conversations)), *rest]
        if len(prompt) < MAX_MODEL_LEN - 20:
            self.admit(prompt, client, 20)

    @rule(num_steps=st.integers(1, 5))
    def step(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self.take(self.core.step())

    @precondition(lambda self: self.core.has_work())
    @rule(in_collect=st.booleans())
    def fail_a_step(self, in_collect: bool) -> None:
        self.runner.fail_next, self.runner.fail_next_collect = not in_collect, in_collect
        try:
            self.take(self.core.step())
        except RuntimeError:
            self.take_failures(self.core.fail_step(GenerationFailed("scripted")))
        self.runner.fail_next = self.runner.fail_next_collect = False

    @precondition(lambda self: len(self.promised) > len(self.ended))
    @rule(data=st.data(), one_sample=st.booleans(), while_a_step_runs=st.booleans())
    def abort(self, data: st.DataObject, one_sample: bool, while_a_step_runs: bool) -> None:
        client, request_id, index = data.draw(st.sampled_from(sorted(set(self.promised) - self.ended)))

        def leave() -> None:
            self.core.abort(client, request_id, index if one_sample else None)
            self.forget(lambda key: key[:2] == (client, request_id) and (not one_sample or key[2] == index))

        if while_a_step_runs:
            self.take(self.core.step(on_launched=leave))
        else:
            leave()

    @rule(client=CLIENTS)
    def lose_a_client(self, client: int) -> None:
        self.core.abort_client(client)
        self.forget(lambda key: key[0] == client)

    @rule(now=st.sampled_from([5.0, 10.0]))
    def pass_deadlines(self, now: float) -> None:
        self.take_failures(self.core.fail_expired(now, DeadlineExceeded("scripted")))
        assert all(deadline > now for key, deadline in self.deadlines.items() if key in set(self.promised) - self.ended)

    def forget(self, is_gone: object) -> None:
        for key in [key for key in self.promised if key not in self.ended and is_gone(key)]:  # type: ignore[operator]
            del self.promised[key]

    def take_failures(self, failures: list[ClientFailure]) -> None:
        for client, message in failures:
            keys = [key for key in set(self.promised) - self.ended if key[:2] == (client, message.request_id)]
            assert keys, "a request that has ended failed"
            self.forget(lambda key, keys=keys: key in keys)

    def take(self, outputs: ClientOutputs) -> None:
        for client, message in [(client, message) for client, messages in outputs.items() for message in messages]:
            key = (client, message.request_id, message.index)
            assert key in self.promised, "a sequence that was given up still speaks"
            assert key not in self.ended, "a sequence ended twice"
            self.tokens[key] += message.new_token_ids
            assert len(message.new_token_ids) == 1
            is_last = message.finish_reason is not None
            assert (message.usage is not None) == (is_last or len(self.tokens[key]) == 1)
            if message.usage is not None:
                assert message.usage.num_output_tokens == len(self.tokens[key])
                assert message.usage.num_prompt_tokens == len(self.prompts[key])
                num_cached = message.usage.num_cached_tokens
                assert num_cached % BLOCK_SIZE == 0 and num_cached < len(self.prompts[key])
                assert self.is_caching or not num_cached
            if is_last:
                has_stopped = self.tokens[key][-1] in self.stop_ids[key]
                assert message.finish_reason == ("stop" if has_stopped else "length")
                self.ended.add(key)
                self.conversations.append(self.prompts[key] + self.tokens[key])

    @invariant()
    def every_block_is_held_as_often_as_it_is_counted(self) -> None:
        held: dict[int, int] = {}
        for sequence in self.core.scheduler.unfinished():
            assert len(set(sequence.block_ids)) == len(sequence.block_ids)
            for block_id in sequence.block_ids:
                held[block_id] = held.get(block_id, 0) + 1
        for block_id in range(self.pool.num_usable_blocks + 1):
            num_holders = held.get(block_id, 0)
            assert self.pool.ref_count(block_id) == num_holders
            assert num_holders < 2 or self.pool.hash_of(block_id) is not None, "an unfinished block is shared"
        assert len(held) + self.pool.num_free_blocks == self.pool.num_usable_blocks

    @invariant()
    def every_computed_token_lies_in_its_block(self) -> None:
        for sequence in self.core.scheduler.unfinished():
            self.runner.check_contents(sequence, sequence.num_computed_tokens)

    @invariant()
    def a_name_stands_for_one_content(self) -> None:
        for block_id in range(self.pool.num_usable_blocks + 1):
            name = self.pool.hash_of(block_id)
            if name is not None:
                contents = self.runner.contents[block_id]
                assert None not in contents, "a block that nobody has filled can be found"
                assert self.named.setdefault(name, list(contents)) == contents

    def teardown(self) -> None:
        if not hasattr(self, "core"):
            return
        for _ in range(MAX_DRAIN_STEPS):
            if not self.core.has_work():
                break
            self.step(1)
        assert not self.core.has_work(), "a sequence waits for ever"
        assert {key: self.tokens[key] for key in self.promised} == self.promised
        assert self.ended == set(self.promised)
        assert self.pool.num_free_blocks == self.pool.num_usable_blocks, "after the drain the pool is not as new"
        assert all(self.pool.ref_count(block_id) == 0 for block_id in range(self.pool.num_usable_blocks + 1))


class OverlapMachine(CoreMachine):
    overlap = True


TestCore = CoreMachine.TestCase
TestCore.settings = at_least(300, num_rules=30)
TestOverlap = OverlapMachine.TestCase
TestOverlap.settings = at_least(300, num_rules=30)
