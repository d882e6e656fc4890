"""The prefix cache through the core: who finds what, who must not, and what a failed step leaves behind."""

import hashlib
from array import array

import pytest

from engine.api import EngineConfig, GenerateRequest, GenerationFailed, RequestOutput
from engine.core import EngineCore
from tests.engine.scripted import ScriptedRunner, expected_tokens, model_info, request, runner_for

BLOCK_SIZE = 16
PROMPT = [20 + i for i in range(100)]


@pytest.fixture(autouse=True, params=[False, True], ids=["one by one", "overlap"])
def overlap(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(Served, "overlap", request.param)
    return bool(request.param)


class Served:
    """A core on a scripted runner."""

    overlap = False

    def __init__(self, num_blocks: int = 50, **settings: object) -> None:
        config = EngineConfig(block_size=BLOCK_SIZE, async_scheduling=self.overlap, **settings)  # type: ignore[arg-type]
        self.runner: ScriptedRunner = runner_for(config, num_blocks)
        self.core = EngineCore(config, model_info(), self.runner)
        self.next_id = 0

    @property
    def num_hits(self) -> int:
        return self.core.scheduler.kv_cache.num_prefix_hit_tokens

    def ask(self, prompt: list[int], max_tokens: int = 4, **options: object) -> GenerateRequest:
        made = request(self.next_id, prompt, max_tokens=max_tokens, ignore_eos=True, **options)  # type: ignore[arg-type]
        self.next_id += 1
        self.core.add_request(1, made)
        return made

    def drain(self) -> list[RequestOutput]:
        """The last output of each sequence."""
        last = []
        while self.core.has_work():
            for message in self.core.step().get(1, []):
                if message.finish_reason is not None:
                    last.append(message)
        return last

    def cached(self, prompt: list[int], **options: object) -> list[int]:
        """Cached tokens of each sequence of a request that is served now."""
        self.ask(prompt, **options)  # type: ignore[arg-type]
        return [message.usage.num_cached_tokens for message in self.drain() if message.usage]


def test_a_prompt_that_was_served_is_found_but_for_its_last_token() -> None:
    served = Served()
    assert served.cached(PROMPT) == [0]
    assert served.cached(PROMPT) == [96]
    assert served.cached(PROMPT[:96]) == [80], "one token must be computed, and it needs its block"
    assert served.cached(PROMPT[:97]) == [96]
    assert served.cached(PROMPT[:50]) == [48]
    assert served.cached([*PROMPT[:40], 5, *PROMPT[41:]]) == [32]
    assert served.cached([5, *PROMPT]) == [0], "the same tokens at other positions are others"
    assert served.num_hits == 96 + 80 + 96 + 48 + 32


def test_the_next_turn_finds_the_answer_too() -> None:
    served = Served()
    served.cached(PROMPT, max_tokens=40)
    turn = PROMPT + expected_tokens(PROMPT, 40)
    assert served.cached([*turn, 5, 6, 7]) == [128]  # 139 tokens were computed: all but the answer's last


@pytest.mark.parametrize("budget", [1024, 40])
def test_samples_of_one_prompt_share_it(budget: int) -> None:
    served = Served(max_num_batched_tokens=budget, max_num_seqs=4)
    served.ask(PROMPT, n=4)
    served.drain()
    # Each computes the four tokens after the last full block, and three of its four new ones. Where a chunk ends within
    # a block, the next sample begins that block again.
    least = 96 + 4 * (4 + 3)
    assert least <= served.runner.num_scheduled_tokens <= least + (BLOCK_SIZE * 96 // budget if budget < 100 else 0)


def test_a_prompt_under_way_catches_up_with_one_that_is_ahead() -> None:
    served = Served(max_num_batched_tokens=32, max_num_seqs=2)
    served.ask(PROMPT)
    served.ask(PROMPT)
    served.drain()
    # The first one's chunks of 24 to 32 tokens end within blocks, which the second begins again.
    assert served.num_hits > 96 - 3 * BLOCK_SIZE


def test_a_running_sequence_is_found_as_far_as_its_tokens_are_known() -> None:
    served = Served()
    served.ask(PROMPT[:20], max_tokens=100)
    tokens = expected_tokens(PROMPT[:20], 100)
    num_known = 0
    while num_known < 45:
        num_known += len(served.core.step().get(1, []))
    assert num_known == 45, "64 tokens are computed or under way, and known"
    served.ask([*PROMPT[:20], *tokens[:45]], max_tokens=1)
    found = []
    while not found:
        found = [m.usage.num_cached_tokens for m in served.core.step().get(1, []) if m.request_id == 1 and m.usage]
    assert found == [64]


@pytest.mark.parametrize("num_tokens", [15, 16, 17])
def test_the_token_that_stops_a_sequence_is_not_computed_as_far_as_others_can_tell(num_tokens: int) -> None:
    served = Served()
    prompt, tokens = PROMPT[:16], expected_tokens(PROMPT[:16], num_tokens)
    served.ask(prompt, max_tokens=50, stop_token_ids=(tokens[-1],))
    assert served.drain()[0].finish_reason == "stop"
    assert served.cached([*prompt, *tokens, 5]) == [32 if num_tokens == 17 else 16]


def test_salts_keep_requests_apart() -> None:
    served = Served()
    assert served.cached(PROMPT, cache_salt="a") == [0]
    assert served.cached(PROMPT) == [0]
    assert served.cached(PROMPT, cache_salt="b") == [0]
    assert served.cached(PROMPT, cache_salt="a") == [96]


def test_a_salt_cannot_pass_for_a_name_and_its_tokens() -> None:
    """The sha256 of this salt is UTF-8, and so are small token ids: another salt can be what a block's hash is over."""
    salt = "124935989"
    first, second = ([base + i for i in range(BLOCK_SIZE)] for base in (20, 50))
    hashed = hashlib.sha256(salt.encode()).digest() + array("i", first).tobytes()
    served = Served()
    assert served.cached([*first, *second, 9], cache_salt=salt) == [0]
    assert served.cached([*second, 9], cache_salt=hashed.decode("utf-8")) == [0], "K/V of other positions"


def test_whoever_wants_the_prompts_log_probabilities_computes_them_all() -> None:
    served = Served()
    served.cached(PROMPT)
    assert served.cached(PROMPT, prompt_logprobs=0) == [0]
    assert served.cached([5, *PROMPT], prompt_logprobs=0) == [0]
    assert served.cached([5, *PROMPT]) == [96], "what it computed is there for others"


def test_the_switch_turns_it_off() -> None:
    served = Served(enable_prefix_caching=False)
    assert served.cached(PROMPT) == served.cached(PROMPT) == [0]
    kv_cache = served.core.scheduler.kv_cache
    assert (kv_cache.pool.num_cached_blocks, kv_cache.num_prefix_query_tokens) == (0, 0)


@pytest.mark.parametrize("in_collect", [False, True])
def test_nobody_finds_what_a_failed_step_left(in_collect: bool) -> None:
    served = Served()
    served.cached(PROMPT[:40])
    served.ask(PROMPT, n=2)
    served.runner.fail_next, served.runner.fail_next_collect = not in_collect, in_collect
    with pytest.raises(RuntimeError):
        served.drain()
    assert len(served.core.fail_step(GenerationFailed("scripted"))) == 1
    assert served.cached(PROMPT) == [32], "what earlier steps computed is still there"


@pytest.mark.parametrize("in_collect", [False, True])
def test_a_step_that_was_cut_short_and_never_reported_leaves_nothing_either(in_collect: bool) -> None:
    served = Served()
    served.ask(PROMPT)
    served.runner.fail_next, served.runner.fail_next_collect = not in_collect, in_collect
    with pytest.raises(RuntimeError):
        served.drain()
    served.core.abort_client(1)  # what `LLM` does after an interrupt
    assert served.cached(PROMPT) == [0]


def test_the_tail_of_a_prompt_is_evicted_before_its_head() -> None:
    served = Served(num_blocks=17)  # 16 blocks: one sequence of max_model_len
    served.cached(PROMPT)  # 6 full blocks stay
    served.cached([5] * 200)  # 13 blocks: 10 were free, 3 are evicted
    assert served.cached(PROMPT) == [48]


def test_what_was_used_last_is_evicted_last() -> None:
    served = Served(num_blocks=17)
    other = [9, *PROMPT[:63]]
    served.cached(PROMPT[:64])
    served.cached(other)
    served.cached([*PROMPT[:64], 6])
    served.cached([5] * 178)  # 12 blocks; the other prompt's go first
    assert served.cached([*PROMPT[:64], 5]) == [64]
    assert served.cached([*other, 5]) == [0]


def test_what_a_sequence_finds_is_not_free_for_it_as_well() -> None:
    served = Served(num_blocks=17)
    served.cached(PROMPT[:97], max_tokens=1)  # 6 blocks that nobody holds
    served.ask([5] * 120, max_tokens=2)  # 8 blocks; 2 are left
    served.core.step()
    served.ask([*PROMPT[:96], *range(300, 340)], max_tokens=2)  # finds 6 and lacks 3
    served.core.step()
    assert served.core.scheduler.num_waiting == 1
    assert [message.usage.num_cached_tokens for message in served.drain() if message.usage][-1] == 96
