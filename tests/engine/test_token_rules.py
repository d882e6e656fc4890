"""What a sequence's tokens do to its next one: bans, bias and counts, and the rows that hold them between steps."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.api import GenerateRequest, SamplingParams
from engine.sampling import SamplingState
from engine.sequence import Sequence
from engine.token_rules import TokenRules

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


def test_a_plain_batch_has_nothing_on_top() -> None:
    state = SamplingState(4, VOCAB_SIZE, (EOS,))
    plain = sequence([1, 2], [3], temperature=0.5, top_k=3)
    plain.row = 2
    state.update(plain)
    tensors = state.batch(np.array([2]), np.array([3]), (0,)).tensors
    assert (tensors.allowed, tensors.bias, tensors.penalties) == (None, None, None)


def test_a_row_is_plain_again_for_the_next_sequence() -> None:
    state = SamplingState(2, VOCAB_SIZE, (EOS,))
    first = sequence([1], [2], ((4,),), allowed_token_ids=(1, 2), frequency_penalty=1.0, logprobs=2, min_p=0.5)
    second = sequence([1], [2], temperature=0.0)
    for item in (first, second):
        item.row = 1
        state.update(item)
    batch = state.batch(np.array([1]), np.array([2]), (0,))
    assert (batch.tensors.allowed, batch.tensors.bias, batch.tensors.penalties) == (None, None, None)
    assert (batch.logprobs, batch.tensors.min_p.tolist(), batch.tensors.all_greedy) == ((), [0.0], True)


def test_logprobs_are_wanted_by_row() -> None:
    state = SamplingState(3, VOCAB_SIZE, (EOS,))
    for row, num_top in enumerate((5, None, 0)):
        item = sequence([1], [], logprobs=num_top)
        item.row = row
        state.update(item)
    assert state.batch(np.array([2, 1, 0]), np.array([1, 1, 1]), (0, 1, 2)).logprobs == ((0, 0), (2, 5))


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_counts_are_right_whatever_happens_to_rows(data: st.DataObject) -> None:
    """Sequences grow, leave their rows, come back to the same or others, end and are replaced; some are sampled."""
    tokens = st.lists(st.integers(0, 9), max_size=6)

    def new() -> Sequence:
        params = data.draw(st.sampled_from([{"repetition_penalty": 1.5}, {"presence_penalty": 0.5, "seed": 3}, {}]))
        return sequence([1, *data.draw(tokens)], data.draw(tokens), **params)

    state, sequences = SamplingState(3, VOCAB_SIZE, (EOS,)), [new() for _ in range(4)]
    for _ in range(data.draw(st.integers(1, 12))):
        if data.draw(st.booleans()):
            sequences[data.draw(st.integers(0, 3))] = new()
        order = data.draw(st.permutations(range(4)))[:3]
        running = [sequences[i] for i in order]
        for row, item in enumerate(running):
            item.row = row
            state.update(item)
            item.token_ids += data.draw(tokens)
        sampled = data.draw(st.lists(st.integers(0, 2), min_size=1, unique=True))
        tensors = state.batch(np.array(sampled), np.zeros(len(sampled)), tuple(sampled)).tensors
        found: dict[tuple[int, int], int] = {}
        if (held := tensors.penalties) is not None:
            keys = list(zip(held.rows.tolist(), held.token_ids.tolist(), strict=True))
            assert keys == list(dict.fromkeys(keys)) and held.rows.tolist() == sorted(held.rows.tolist())
            found = dict(zip(keys, held.counts.tolist(), strict=True))
        expected: dict[tuple[int, int], int] = {}
        for place, row in enumerate(sampled):
            item, params = running[row], running[row].request.params
            output = item.token_ids[item.num_prompt_tokens :]
            if params.repetition_penalty != 1.0:
                expected |= {(place, token): 0 for token in item.token_ids}
            if params.has_penalties:
                expected |= {(place, token): count for token, count in Counter(output).items()}
        assert found == expected
