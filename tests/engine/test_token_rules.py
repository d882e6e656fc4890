"""What a sequence's tokens do to its next one: bans, bias and counts, and the words that tell the device of them."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.api import GenerateRequest, SamplingParams
from engine.sampling import held_tokens, joined_biases, mask_words, sampling_words
from engine.sequence import Sequence
from engine.token_rules import TokenRules
from kernels import SamplingColumn

VOCAB_SIZE = 50
EOS = 7


def sequence(
    prompt: list[int], output: list[int], words: tuple[tuple[int, ...], ...] = (), **params: object
) -> Sequence:
    request = GenerateRequest(
        request_id=0,
        prompt_token_ids=prompt,
        params=SamplingParams(**params),  # type: ignore[arg-type]
        deadline=0.0,
        bad_words_ids=words,
    )
    result = Sequence.from_request(request, client_id=0, index=0, base_seed=1)
    result.token_ids += output
    return result


def bias(of: Sequence, vocab_size: int = VOCAB_SIZE) -> dict[int, float]:
    ids, values = TokenRules(of, vocab_size, (EOS,)).bias()
    assert len(set(ids.tolist())) == len(ids), "a token occurs twice"
    return dict(zip(ids.tolist(), values.tolist(), strict=True))


def banned(of: Sequence, vocab_size: int = VOCAB_SIZE) -> set[int]:
    return {token for token, value in bias(of, vocab_size).items() if value == -math.inf}


def test_a_bad_word_is_banned_where_the_output_ends_with_its_head() -> None:
    words = ((9,), (1, 2, 3), (2, 4), (5, 5, 5))
    assert banned(sequence([1, 2], [], words)) == {9}, "the prompt is not output"
    assert banned(sequence([1], [2], words)) == {9, 4}, "the head must lie in the output as a whole"
    assert banned(sequence([0], [1, 2], words)) == {9, 3, 4}
    assert banned(sequence([0], [1, 2, 0], words)) == {9}
    assert banned(sequence([5, 5], [5], words)) == {9}
    assert banned(sequence([0], [5, 5, 5], words)) == {9, 5}


def test_a_bad_word_that_the_model_cannot_say_bans_nothing() -> None:
    assert banned(sequence([0], [1], ((), (VOCAB_SIZE,), (-1,), (1, VOCAB_SIZE), (VOCAB_SIZE, 3)))) == set()


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_min_tokens_bans_what_would_end_the_output(ignore_eos: bool) -> None:
    params = {"min_tokens": 2, "stop_token_ids": (11, 12), "ignore_eos": ignore_eos}
    rules = TokenRules(growing := sequence([0], [], **params), VOCAB_SIZE, (EOS, 8))
    for expected in ({EOS, 8, 11, 12}, {EOS, 8, 11, 12}, set(), set()):
        assert set(rules.bias()[0].tolist()) == expected
        growing.token_ids.append(20)


def test_a_ban_goes_before_a_bias_and_gives_it_back() -> None:
    rules = TokenRules(growing := sequence([0], [], logit_bias={EOS: 2.0, 3: -1.5}, min_tokens=1), VOCAB_SIZE, (EOS,))
    assert dict(zip(*(x.tolist() for x in rules.bias()), strict=True)) == {EOS: -math.inf, 3: -1.5}
    growing.token_ids.append(3)
    assert dict(zip(*(x.tolist() for x in rules.bias()), strict=True)) == {EOS: 2.0, 3: -1.5}


def test_a_ban_never_takes_the_last_token() -> None:
    assert banned(sequence([0], [], allowed_token_ids=(EOS,), min_tokens=4)) == set()
    assert banned(sequence([0], [], ((3,),), allowed_token_ids=(EOS, 3), min_tokens=4)) == {3}, "first min_tokens"
    assert banned(sequence([0], [], ((3,),), allowed_token_ids=(EOS, 3, 4), min_tokens=4)) == {3, EOS}
    assert banned(sequence([0], [], ((3,), (4,)), allowed_token_ids=(3, 4))) == set(), "then bad words"
    assert banned(sequence([0], [], ((0,), (1,))), vocab_size=2) == set()
    assert banned(sequence([0], [], ((0,),)), vocab_size=2) == {0}


def test_joined_biases_are_the_rows_own() -> None:
    first = TokenRules(sequence([0], [], logit_bias={4: 1.0, 9: -2.0}), VOCAB_SIZE, (EOS,))
    none = TokenRules(sequence([0], [], presence_penalty=1.0), VOCAB_SIZE, (EOS,))
    last = TokenRules(sequence([0], [], ((3,),)), VOCAB_SIZE, (EOS,))
    assert joined_biases([None, none]) is None
    joined = joined_biases([first, None, none, last])
    assert joined is not None
    starts, ids, values = joined
    assert (starts.tolist(), ids.tolist()) == ([0, 2, 2, 2, 3], [4, 9, 3])
    assert values.tolist() == [1.0, -2.0, -math.inf]
    assert (starts.dtype, ids.dtype, values.dtype) == (np.int32, np.int32, np.float32)


def test_whether_the_last_token_is_read_is_known_from_the_request() -> None:
    assert not TokenRules.read_last_token(sequence([1], [], ((4,),), min_tokens=3, presence_penalty=1.0).request)
    assert TokenRules.read_last_token(sequence([1], [], ((4,), (4, 5))).request)


def test_a_mask_has_a_bit_for_each_allowed_token() -> None:
    rules = TokenRules(sequence([0], [], allowed_token_ids=(0, 31, 32, 49)), VOCAB_SIZE, (EOS,))
    assert mask_words(rules).tolist() == [1 - 2**31, 1 | 1 << 17]


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.lists(st.integers(0, 9), max_size=6), st.booleans())
def test_held_tokens_are_counted_once_each(prompt: list[int], output: list[int], with_prompt: bool) -> None:
    params = {"repetition_penalty": 1.5} if with_prompt else {"presence_penalty": 0.5}
    ids, counts = held_tokens(sequence(prompt, output, **params))
    expected = Counter({token: 2 * count for token, count in Counter(output).items()})
    expected.update(set(prompt) if with_prompt else ())
    assert dict(zip(ids.tolist(), counts.tolist(), strict=True)) == dict(expected)


def test_sampling_words_keep_what_float32_would_lose() -> None:
    words = sampling_words(sequence([1], [], temperature=1e-300, top_p=1e-300, seed=3), None)
    floats = words.view(np.float32)
    assert floats[SamplingColumn.TEMPERATURE] > 0 and floats[SamplingColumn.TOP_P] > 0
    assert words[SamplingColumn.FLAGS] == 0
    assert sampling_words(sequence([1], [], temperature=0.0), None)[SamplingColumn.TEMPERATURE] == 0
