"""The prefix cache and preemption on the shipped model: what is found, and that no token changes for it."""

import itertools
from pathlib import Path

import pytest

from engine.api import EngineConfig, GenerateRequest, RequestOutput, SamplingParams
from engine.core import EngineCore
from engine.runner import load_runner
from engine.text import Tokenizer

MODEL = Path(__file__).parents[2] / "models/galley-tiny"
BLOCK_SIZE = 32
MAX_MODEL_LEN = 320
# 4 layers of 2 heads of 64 numbers of 4 bytes, for K and for V.
BLOCK_GIB = 2 * 4 * BLOCK_SIZE * 2 * 64 * 4 / 2**30
TEXT = "Galley is a container that serves large language models. It answers on port 8080. " * 4


class Served:
    """A core over the shipped model."""

    def __init__(self, **settings: object) -> None:
        config = EngineConfig(
            model=str(MODEL),
            dtype="float32",
            block_size=BLOCK_SIZE,
            max_model_len=MAX_MODEL_LEN,
            **settings,  # type: ignore[arg-type]
        )
        runner, info = load_runner(config, lambda stage: None)
        self.core = EngineCore(config, info, runner)

    def generate(
        self, prompts: list[list[int]], params: SamplingParams
    ) -> tuple[dict[tuple[int, int], list[int]], dict[tuple[int, int], int]]:
        """Tokens, and cached prompt tokens, by (prompt, sample)."""
        for i, prompt in enumerate(prompts):
            self.core.add_request(
                1, GenerateRequest(request_id=i, prompt_token_ids=prompt, params=params, deadline=float("inf"))
            )
        tokens: dict[tuple[int, int], list[int]] = {}
        cached: dict[tuple[int, int], int] = {}
        while self.core.has_work():
            for message in itertools.chain(*self.core.step().values()):
                assert isinstance(message, RequestOutput)
                key = (message.request_id, message.index)
                tokens.setdefault(key, []).extend(message.new_token_ids)
                if message.usage is not None:
                    cached[key] = message.usage.num_cached_tokens
        return tokens, cached


@pytest.fixture(scope="module")
def ids() -> list[int]:
    return Tokenizer.from_dir(MODEL).encode(TEXT)[:150]


SAMPLED = SamplingParams(temperature=1.0, seed=5, max_tokens=60, ignore_eos=True)
GREEDY = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_what_is_found_gives_the_tokens_that_computing_it_gives(ids: list[int], params: SamplingParams) -> None:
    expected, none = Served(enable_prefix_caching=False).generate([ids], params)
    served = Served()
    first, cold = served.generate([ids], params)
    second, warm = served.generate([ids], params)
    assert first == second == expected
    assert (none, cold, warm) == ({(0, 0): 0}, {(0, 0): 0}, {(0, 0): 149 // BLOCK_SIZE * BLOCK_SIZE})
    # The next turn of the chat finds the answer as well.
    turn = [*ids, *expected[0, 0], *ids[:20]]
    alone, _ = Served(enable_prefix_caching=False).generate([turn], params)
    again, warmer = served.generate([turn], params)
    assert again == alone
    assert warmer == {(0, 0): 209 // BLOCK_SIZE * BLOCK_SIZE}


def test_samples_share_a_prompt_in_the_step_that_computes_it(ids: list[int]) -> None:
    params = SamplingParams(temperature=1.0, seed=5, max_tokens=20, ignore_eos=True, n=3)
    expected, _ = Served(enable_prefix_caching=False).generate([ids], params)
    tokens, cached = Served().generate([ids], params)
    assert tokens == expected
    assert cached == {(0, 0): 0, (0, 1): 128, (0, 2): 128}


@pytest.mark.parametrize("is_caching", [True, False])
def test_a_tiny_cache_gives_the_tokens_of_a_large_one(ids: list[int], is_caching: bool) -> None:
    prompts = [ids[:100], ids[:70] + ids[90:110], ids[40:140], ids[:100]]
    expected, _ = Served(enable_prefix_caching=False).generate(prompts, SAMPLED)
    # One sequence of max_model_len and a little more: 4 of up to 5 blocks each do not fit.
    tiny = Served(kv_cache_memory_gib=12.5 * BLOCK_GIB, enable_prefix_caching=is_caching)
    tokens, _ = tiny.generate(prompts, SAMPLED)
    assert tokens == expected
    assert tiny.core.scheduler.num_preemptions > 0
    assert (tiny.core.scheduler.kv_cache.num_prefix_hit_tokens > 0) == is_caching
