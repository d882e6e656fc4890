"""Every field that takes effect: what the engine is told of it, and what the text shows of it."""

from typing import Any

import pytest
from flask.testing import FlaskClient

from container.routes.serving import Choice, best
from engine.api import SamplingParams, TokenLogprobs
from engine.text import Tokenizer
from tests.http.scripted_engine import ScriptedEngine
from tests.http.test_chat import HI, events

CHAT, COMPLETIONS, INVOCATIONS = "/v1/chat/completions", "/v1/completions", "/invocations"

# Of both OpenAI routes: field, value, what SamplingParams must hold.
SHARED: list[tuple[str, Any, Any]] = [
    ("min_p", 0.25, 0.25),
    ("presence_penalty", -1.5, -1.5),
    ("frequency_penalty", 2, 2.0),
    ("repetition_penalty", 1.25, 1.25),
    ("logit_bias", {"5": -100, "0": 0.5}, {5: -100.0, 0: 0.5}),
    ("bad_words", ["One", " two"], ("One", " two")),
    ("allowed_token_ids", [1, 2], (1, 2)),
    ("min_tokens", 2, 2),
    ("prompt_logprobs", 0, 0),
    ("prompt_logprobs", 20, 20),
    ("include_stop_str_in_output", True, True),
]


@pytest.mark.parametrize("url", [CHAT, COMPLETIONS])
@pytest.mark.parametrize(("field", "value", "expected"), SHARED)
def test_a_field_reaches_the_engine_and_only_it(
    http: FlaskClient, engine: ScriptedEngine, url: str, field: str, value: Any, expected: Any
) -> None:
    body = {"messages": HI} if url == CHAT else {"prompt": "Hi"}
    assert http.post(url, json={**body, "max_tokens": 3}).status_code == 200
    assert http.post(url, json={**body, "max_tokens": 3, field: value}).status_code == 200
    plain, params = (request.params for request in engine.generated)
    assert getattr(params, field) == expected != getattr(SamplingParams(), field)
    changed = [name for name in params.__struct_fields__ if getattr(params, name) != getattr(plain, name)]
    assert changed == [field]


@pytest.mark.parametrize("url", [CHAT, COMPLETIONS])
def test_priority_cache_salt_and_the_ids_of_bad_words(
    http: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer, url: str
) -> None:
    body = {"messages": HI} if url == CHAT else {"prompt": ["Hi", "Ho"]}
    fields = {"priority": -3, "cache_salt": "mine", "bad_words": ["no", " no", "é"]}
    assert http.post(url, json={**body, "max_tokens": 3, **fields}).status_code == 200
    assert http.post(url, json={**body, "max_tokens": 3}).status_code == 200
    half = len(engine.generated) // 2
    for request in engine.generated[:half]:
        assert (request.priority, request.cache_salt) == (-3, "mine")
        assert request.bad_words_ids == (tuple(tokenizer.encode("no")), tuple(tokenizer.encode("é")))
    for request in engine.generated[half:]:
        assert (request.priority, request.cache_salt, request.bad_words_ids) == (0, "", ())


@pytest.mark.parametrize("url", [CHAT, COMPLETIONS])
def test_the_stop_string_can_stay_in_the_text(http: FlaskClient, engine: ScriptedEngine, url: str) -> None:
    body = {"messages": HI} if url == CHAT else {"prompt": "Hi"}
    for keep, text in ((False, "Hello, wörld! "), (True, "Hello, wörld! One")):
        sent = {**body, "max_tokens": 100, "stop": ["One", "Two"], "include_stop_str_in_output": keep}
        [choice] = http.post(url, json=sent).get_json()["choices"]
        assert (choice["message"]["content"] if url == CHAT else choice["text"]) == text
        assert choice["finish_reason"] == "stop"


def test_no_stop_string_ends_the_text_before_min_tokens(http: FlaskClient, engine: ScriptedEngine) -> None:
    # "Hello" is five tokens: its last one completes "lo".
    for min_tokens, text in ((0, "Hel"), (5, "Hel"), (6, "Hello, wörld! One two three.")):
        sent = {"prompt": "a", "max_tokens": 100, "stop": "lo", "min_tokens": min_tokens}
        assert http.post(COMPLETIONS, json=sent).get_json()["choices"][0]["text"] == text


def test_usage_tells_the_cached_tokens_of_each_prompt_once(http: FlaskClient, engine: ScriptedEngine) -> None:
    engine.num_cached_tokens = 32
    body = http.post(COMPLETIONS, json={"prompt": ["a", "b"], "n": 3, "max_tokens": 2}).get_json()
    assert body["usage"]["prompt_tokens_details"] == {"cached_tokens": 64}
    body = http.post(COMPLETIONS, json={"prompt": "a", "max_tokens": 100, "stop": "lo"}).get_json()
    assert body["usage"]["prompt_tokens_details"] == {"cached_tokens": 32}
    for url, sent in ((CHAT, {"messages": HI}), (COMPLETIONS, {"prompt": "a"})):
        streamed = events(
            http.post(
                url, json={**sent, "max_tokens": 2, "stream": True, "stream_options": {"include_usage": True}}
            ).data
        )
        assert streamed[-2]["usage"]["prompt_tokens_details"] == {"cached_tokens": 32}


def test_best_of_gives_the_likeliest_first_and_charges_for_all(http: FlaskClient, engine: ScriptedEngine) -> None:
    engine.logprob = lambda index, place: {0: -2.0, 1: float("-inf"), 2: -0.5, 3: -1.0}[index]
    sent = {"prompt": ["a", "b"], "n": 2, "best_of": 4, "max_tokens": 3, "logprobs": 0}
    body = http.post(COMPLETIONS, json=sent).get_json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    assert [choice["logprobs"]["token_logprobs"][0] for choice in body["choices"]] == [-0.5, -1.0] * 2
    assert body["usage"]["completion_tokens"] == 2 * 4 * 3
    assert [request.params.n for request in engine.generated] == [4, 4]
    # Without logprobs the engine is asked for them, and the client not shown any.
    body = http.post(COMPLETIONS, json={"prompt": "a", "best_of": 2, "max_tokens": 3}).get_json()
    assert [choice["logprobs"] for choice in body["choices"]] == [None]
    assert engine.generated[-1].params.logprobs == 0
    # As many as are generated stay in their order.
    body = http.post(COMPLETIONS, json={"prompt": "a", "n": 3, "best_of": 3, "max_tokens": 1, "logprobs": 0}).get_json()
    assert [choice["logprobs"]["token_logprobs"] for choice in body["choices"]] == [[-2.0], [-9999.0], [-0.5]]
    # As many as are generated: nothing to choose, nothing to weigh; so it can be streamed.
    streamed = http.post(COMPLETIONS, json={"prompt": "a", "n": 2, "best_of": 2, "stream": True, "max_tokens": 3})
    assert sorted({e["choices"][0]["index"] for e in events(streamed.data)[:-1]}) == [0, 1]
    assert engine.generated[-1].params.logprobs is None


def test_the_mean_counts_not_the_sum() -> None:
    def choice(*logprobs: float) -> Choice:
        return Choice(logprobs=[TokenLogprobs(logprob, 1, [], []) for logprob in logprobs])

    long, short = choice(*[-1.0] * 10), choice(-3.0)
    assert best([short, long, long, short], 2, 1) == [long, long]


def test_echo(http: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer) -> None:
    prompts: list[Any] = ["Say é: ", tokenizer.encode("Say é: ")]
    for prompt in prompts:
        body = http.post(COMPLETIONS, json={"prompt": prompt, "echo": True, "max_tokens": 5}).get_json()
        assert body["choices"][0]["text"] == "Say é: Hello"
        assert body["choices"][0]["logprobs"] is None
        assert body["usage"]["completion_tokens"] == 5
    assert engine.generated[-1].params.prompt_logprobs is None
    body = http.post(COMPLETIONS, json={"prompt": ["a", "b"], "n": 2, "echo": True, "max_tokens": 5}).get_json()
    assert [choice["text"] for choice in body["choices"]] == ["aHello", "aHello", "bHello", "bHello"]
    streamed = http.post(COMPLETIONS, json={"prompt": "Say: ", "echo": True, "max_tokens": 5, "stream": True})
    assert "".join(e["choices"][0]["text"] for e in events(streamed.data)[:-1]) == "Say: Hello"


def test_echo_of_the_prompt_alone(http: FlaskClient, engine: ScriptedEngine) -> None:
    for stream in (False, True):
        sent = {"prompt": "Say", "echo": True, "max_tokens": 0, "logprobs": 1, "stream": stream}
        if stream:
            got = events(http.post(COMPLETIONS, json={**sent, "stream_options": {"include_usage": True}}).data)
            [choice], usage = got[0]["choices"], got[1]["usage"]
        else:
            body = http.post(COMPLETIONS, json=sent).get_json()
            [choice], usage = body["choices"], body["usage"]
        assert (choice["text"], choice["finish_reason"]) == ("Say", "length")
        assert choice["logprobs"]["token_logprobs"] == [None, -0.5, -1.0]
        assert (usage["completion_tokens"], usage["total_tokens"]) == (0, 3)
        assert engine.generated[-1].params.max_tokens == 1


def test_tgi_penalties_and_truncation(http: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer) -> None:
    parameters = {"repetition_penalty": 1.5, "frequency_penalty": 0.5, "truncate": 3, "max_new_tokens": 5}
    body = http.post(INVOCATIONS, json={"inputs": "abcdef", "parameters": parameters}).get_json()
    assert body == [{"generated_text": "Hello"}]
    request = engine.generated[-1]
    assert (request.params.repetition_penalty, request.params.frequency_penalty) == (1.5, 0.5)
    assert tokenizer.decode(request.prompt_token_ids) == "def"
    assert (request.params.logprobs, request.params.prompt_logprobs) == (None, None)
