"""Sampling parameters through the whole engine on the shipped model, beside transformers' logits."""

import dataclasses
import itertools
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.api import EngineConfig, GenerateRequest, ModelInfo, RequestOutput, SamplingParams, TokenLogprobs
from engine.api.sampling_params import MIN_REPETITION_PENALTY
from engine.core import EngineCore
from engine.kv_cache import KVCacheManager
from engine.runner import ModelRunner, load_runner
from engine.sequence import Sequence
from tests.kernels.sampling_rows import Row, edited

transformers = pytest.importorskip("transformers")

MODEL = Path(__file__).parents[2] / "models/galley-tiny"
PROMPTS = [torch.randint(20, 800, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (1, 5, 40, 90)]
Loaded = tuple[ModelRunner, ModelInfo]


@dataclasses.dataclass
class Result:
    token_ids: list[int]
    finish_reason: str | None = None
    logprobs: list[TokenLogprobs] = dataclasses.field(default_factory=list)
    prompt_logprobs: list[list[TokenLogprobs]] = dataclasses.field(default_factory=list)


def config(**settings: Any) -> EngineConfig:
    return EngineConfig(model=str(MODEL), dtype="float32", max_num_seqs=8, max_model_len=256, **settings)


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return load_runner(config(), lambda stage: None)


@pytest.fixture(scope="module")
def peer() -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()


def logits_of(peer: Any, token_ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return peer(torch.tensor([token_ids])).logits[0]


def serve(loaded: Loaded, requests: list[GenerateRequest], **settings: Any) -> list[Result]:
    runner, info = loaded
    core = EngineCore(config(**settings), info, runner)
    results = {}
    for request in requests:
        core.add_request(0, request)
        for index in range(request.params.n):
            results[request.request_id, index] = Result([])
    while core.has_work():
        for output in itertools.chain(*core.step().values()):
            assert isinstance(output, RequestOutput)
            result = results[output.request_id, output.index]
            result.token_ids += output.new_token_ids
            result.finish_reason = output.finish_reason
            result.logprobs += output.logprobs or []
            if output.prompt_logprobs is not None:
                result.prompt_logprobs.append(output.prompt_logprobs)
    return list(results.values())


def request(i: int, prompt: list[int], words: tuple[tuple[int, ...], ...] = (), **params: Any) -> GenerateRequest:
    params = {"max_tokens": 20, "ignore_eos": True, "temperature": 0.0, "seed": i} | params
    return GenerateRequest(
        request_id=i,
        prompt_token_ids=prompt,
        params=SamplingParams(**params),
        deadline=math.inf,
        bad_words_ids=words,
    )


PENALTIES: list[dict[str, float]] = [
    {"repetition_penalty": 1.4},
    {"repetition_penalty": 0.7, "frequency_penalty": 0.8},
    {"frequency_penalty": 1.3},
    {"presence_penalty": 1.9, "frequency_penalty": 0.4},
    {"frequency_penalty": -0.5},
    {},
]


def test_greedy_with_penalties_and_bias_is_that_of_a_plain_recomputation(loaded: Loaded, peer: Any) -> None:
    bias = {50: 3.0, 51: 2.5, 300: -100.0}
    requests = [
        request(2 * i + j, PROMPTS[2 - j], logit_bias=bias if i % 2 else {}, **penalties)
        for i, penalties in enumerate(PENALTIES)
        for j in range(2)
    ]
    changed = set()
    plain = serve(loaded, [request(j, PROMPTS[2 - j]) for j in range(2)])
    for item, found in zip(requests, serve(loaded, requests, max_num_batched_tokens=16), strict=True):
        params, token_ids = item.params, list(item.prompt_token_ids)
        for token in found.token_ids:
            output = Counter(token_ids[len(item.prompt_token_ids) :])
            held = dict.fromkeys(token_ids, 0) if params.repetition_penalty != 1.0 else {}
            row = Row(
                held=held | output,
                bias=dict(params.logit_bias),
                repetition=params.repetition_penalty,
                frequency=params.frequency_penalty,
                presence=params.presence_penalty,
            )
            logits = edited(logits_of(peer, token_ids)[-1].tolist(), row)
            # The best, or as good as: the two models' logits agree to 1e-4.
            assert logits[token] > max(logits) - 1e-3
            token_ids.append(token)
        if found.token_ids != plain[item.request_id % 2].token_ids:
            changed.add(item.request_id // 2)
    assert changed >= {0, 1, 2, 3}, "penalties that change nothing test nothing"


def test_log_probabilities_are_those_of_the_models_own_logits(loaded: Loaded, peer: Any) -> None:
    requests = [
        request(0, PROMPTS[2], logprobs=5, temperature=1.3, top_k=40, presence_penalty=1.0),
        request(1, PROMPTS[1], logprobs=0),
        request(2, PROMPTS[1], temperature=0.9),
        request(3, PROMPTS[3], logprobs=20, allowed_token_ids=tuple(range(60, 90))),
    ]
    for item, found in zip(requests, serve(loaded, requests), strict=True):
        num_top = item.params.logprobs
        if num_top is None:
            assert not found.logprobs
            continue
        everything = item.prompt_token_ids + found.token_ids
        logs = logits_of(peer, everything[:-1])[len(item.prompt_token_ids) - 1 :].log_softmax(-1)
        check_entries(found.logprobs, found.token_ids, logs, num_top)


def check_entries(entries: list[TokenLogprobs], token_ids: list[int], logs: torch.Tensor, num_top: int) -> None:
    """logs: log-probabilities [entries, vocab]. Ids and ranks may differ where two tokens are as good as equal."""
    assert len(entries) == len(token_ids) == len(logs)
    for entry, token, row in zip(entries, token_ids, logs, strict=True):
        assert entry.logprob == pytest.approx(row[token].item(), abs=1e-3)
        assert int((row > row[token] + 1e-3).sum()) < entry.rank <= int((row > row[token] - 1e-3).sum()) + 1
        assert len(set(entry.top_ids)) == len(entry.top_ids) == len(entry.top_logprobs) == num_top
        assert entry.top_logprobs == sorted(entry.top_logprobs, reverse=True)
        assert entry.top_logprobs == pytest.approx(row.topk(num_top).values.tolist(), abs=1e-3)
        assert entry.top_logprobs == pytest.approx(row[entry.top_ids].tolist(), abs=1e-3)


def test_prompt_log_probabilities_whole_cut_and_beside_transformers(loaded: Loaded, peer: Any) -> None:
    requests = [
        request(i, prompt, prompt_logprobs=num_top, max_tokens=2, n=n)
        for i, (prompt, num_top, n) in enumerate(zip(PROMPTS, (3, 20, 0, 2), (1, 2, 1, 1), strict=True))
    ]
    requests.append(request(4, PROMPTS[2], max_tokens=6))
    whole = serve(loaded, requests)
    cut = serve(loaded, requests, max_num_batched_tokens=13)
    of = [item for item in requests for _ in range(item.params.n)]
    for item, result, in_pieces in zip(of, whole, cut, strict=True):
        assert result.token_ids == in_pieces.token_ids
        num_top = item.params.prompt_logprobs
        if num_top is None:
            assert not result.prompt_logprobs and not in_pieces.prompt_logprobs
            continue
        logs = logits_of(peer, item.prompt_token_ids)[:-1].log_softmax(-1)
        for found in (result, in_pieces):
            [entries] = found.prompt_logprobs
            check_entries(entries, item.prompt_token_ids[1:], logs, num_top)


def test_bad_words_allowed_ids_and_min_tokens(loaded: Loaded) -> None:
    prompt = PROMPTS[2]
    [free] = serve(loaded, [request(0, prompt)])
    first, second, third = free.token_ids[:3]
    eos = loaded[1].eos_token_ids[0]
    allowed = tuple(range(100, 110))
    requests = [
        request(0, prompt, ((first,),)),
        request(1, prompt, ((first, second, third), (5, 6))),
        request(2, prompt, temperature=5.0, allowed_token_ids=allowed),
        request(3, prompt, logit_bias={eos: 100.0}, ignore_eos=False, min_tokens=4),
        request(4, prompt, stop_token_ids=(second,), min_tokens=5),
        request(5, prompt, stop_token_ids=(second,)),
        request(6, prompt, allowed_token_ids=(eos,), ignore_eos=False, min_tokens=3),
    ]
    one, three, few, late, banned, stopped, only = serve(loaded, requests)
    assert first not in one.token_ids
    assert three.token_ids[:2] == [first, second] and three.token_ids[2] != third
    triples = zip(three.token_ids, three.token_ids[1:], three.token_ids[2:], strict=False)
    assert (first, second, third) not in set(triples)
    assert set(few.token_ids) <= set(allowed) and len(set(few.token_ids)) > 3
    assert (late.token_ids.index(eos), late.finish_reason) == (4, "stop")
    assert second not in banned.token_ids[:5]
    assert (stopped.token_ids, stopped.finish_reason) == ([first, second], "stop")
    assert (only.token_ids, only.finish_reason) == ([eos] * 4, "stop")


def test_preemption_and_company_change_nothing(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six sequences in a cache for two: they lose their blocks and rows, and come back elsewhere."""
    requests = [
        request(
            i,
            PROMPTS[2],
            ((70,), (71, 72)),
            max_tokens=70,
            temperature=0.8,
            min_p=0.02,
            logprobs=1,
            prompt_logprobs=1,
            min_tokens=40,
            ignore_eos=False,
            logit_bias={80: 1.0},
            **PENALTIES[i],
        )
        for i in range(6)
    ]
    # 16 blocks besides the null block, of 16 tokens; each sequence needs up to 7 of them.
    block_bytes = 2 * 4 * 16 * 2 * 64 * 4
    small = load_runner(config(block_size=16, kv_cache_memory_gib=17.5 * block_bytes / 2**30), lambda stage: None)
    assert small[0].num_blocks == 17
    releases: list[int] = []
    release = KVCacheManager.release

    def watched(self: KVCacheManager, sequence: Sequence) -> None:
        if sequence.finish_reason is None:
            releases.append(sequence.num_output_tokens)
        release(self, sequence)

    monkeypatch.setattr(KVCacheManager, "release", watched)
    roomy = serve(loaded, requests)
    assert not releases
    crowded = serve(small, requests, block_size=16)
    assert len([num for num in releases if num > 0]) >= 3
    alone = [serve(loaded, [item])[0] for item in requests[:2]]
    for found in (crowded, alone):
        for one, other in zip(roomy, found, strict=False):
            assert one.token_ids == other.token_ids
            assert len(one.logprobs) == len(one.token_ids)
            assert [e.logprob for e in one.logprobs] == pytest.approx([e.logprob for e in other.logprobs], abs=1e-3)
            [entries], [others] = one.prompt_logprobs, other.prompt_logprobs
            assert [e.logprob for e in entries] == pytest.approx([e.logprob for e in others], abs=1e-3)


def test_a_device_check_between_steps_changes_nothing(loaded: Loaded) -> None:
    runner, info = loaded
    items = [request(i, PROMPTS[1], ((70,),), temperature=0.8, **PENALTIES[i]) for i in range(2)]
    expected = [result.token_ids for result in serve(loaded, items)]
    core = EngineCore(config(), info, runner)
    for item in items:
        core.add_request(0, item)
    found: list[list[int]] = [[], []]
    while core.has_work():
        for message in itertools.chain(*core.step().values()):
            assert isinstance(message, RequestOutput)
            found[message.request_id] += message.new_token_ids
        runner.warm_up()
    assert found == expected


@pytest.mark.parametrize("penalty", [MIN_REPETITION_PENALTY, 0.05])
def test_the_least_repetition_penalties_harm_nobody(loaded: Loaded, penalty: float) -> None:
    """A logit that they divided to infinity would fail the step for all that are in it."""
    truncations: list[dict[str, float]] = [{}, {"top_k": 5}, {"top_p": 0.9}, {"min_p": 0.1}]
    requests = [
        request(i, PROMPTS[2], temperature=1.0, repetition_penalty=penalty, **truncation)
        for i, truncation in enumerate(truncations)
    ]
    [alone] = serve(loaded, [request(4, PROMPTS[1])])
    *penalised, beside = serve(loaded, [*requests, request(4, PROMPTS[1])])
    assert beside.token_ids == alone.token_ids
    for result in penalised:
        assert set(result.token_ids) <= set(PROMPTS[2]), "what it holds already is all that it can choose"
