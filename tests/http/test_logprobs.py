"""The wire forms of log-probabilities: OpenAI's two, vLLM's for prompts, and TGI's."""

import json
import math
from typing import Any

import pytest
from flask.testing import FlaskClient
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from container import text_run
from engine.api import RequestOutput, TokenLogprobs
from engine.text import Tokenizer
from tests.http.conftest import REPLY
from tests.http.scripted_engine import ScriptedEngine, scripted_logprob
from tests.http.test_chat import HI, events

CHAT, COMPLETIONS, INVOCATIONS = "/v1/chat/completions", "/v1/completions", "/invocations"
NUM_TOKENS = len(REPLY.encode()) + 1
LOGPROBS = [scripted_logprob(0, place) for place in range(NUM_TOKENS)]


def token_names(tokenizer: Tokenizer) -> list[str]:
    """OpenAI's name of every token of the reply: one per byte, and the end."""
    names = [chr(byte) if byte < 128 else f"bytes:\\x{byte:02x}" for byte in REPLY.encode()]
    return [*names, "<|end|>"]


def test_chat(http: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer) -> None:
    body = http.post(CHAT, json={"messages": HI, "logprobs": True, "top_logprobs": 2}).get_json()
    chat = ChatCompletion.model_validate(body)
    assert chat.usage is not None
    logprobs = chat.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == chat.usage.completion_tokens == NUM_TOKENS
    assert [one.token for one in logprobs.content] == token_names(tokenizer)
    assert [one.logprob for one in logprobs.content] == LOGPROBS
    assert b"".join(bytes(one.bytes or []) for one in logprobs.content[:-1]).decode() == REPLY
    first = logprobs.content[0]
    assert [(top.token, top.logprob) for top in first.top_logprobs] == [("H", -0.25), ("I", -1.25)]
    assert set(body["choices"][0]["logprobs"]["content"][0]) == {"token", "logprob", "bytes", "top_logprobs"}
    assert engine.generated[-1].params.logprobs == 2


def test_chat_without_alternatives_or_without_any(http: FlaskClient, engine: ScriptedEngine) -> None:
    [choice] = http.post(CHAT, json={"messages": HI, "logprobs": True, "max_tokens": 2}).get_json()["choices"]
    assert [entry["top_logprobs"] for entry in choice["logprobs"]["content"]] == [[], []]
    assert engine.generated[-1].params.logprobs == 0
    [choice] = http.post(CHAT, json={"messages": HI, "logprobs": False, "max_tokens": 2}).get_json()["choices"]
    assert choice["logprobs"] is None
    assert engine.generated[-1].params.logprobs is None


@pytest.mark.parametrize("stop", [[], ["never, wör", "One twX"]], ids=["plain", "held back"])
def test_chat_stream_loses_no_token_and_keeps_them_with_their_text(
    http: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer, stop: list[str]
) -> None:
    engine.step_s = 0.003
    sent = {"messages": HI, "logprobs": True, "top_logprobs": 1, "stream": True, "stop": stop}
    chunks = [ChatCompletionChunk.model_validate(e) for e in events(http.post(CHAT, json=sent).data)[:-1]]
    names: list[str] = []
    text = ""
    for chunk in chunks[1:]:
        [choice] = chunk.choices
        text += choice.delta.content or ""
        entries = (choice.logprobs and choice.logprobs.content) or []
        names += [entry.token for entry in entries]
        made = b"".join(bytes(entry.bytes or []) for entry in entries if entry.token != "<|end|>")
        if choice.delta.content and not stop:
            assert made.decode() == choice.delta.content
    assert text == REPLY
    assert names == token_names(tokenizer)
    assert chunks[0].choices[0].logprobs is None


def test_chat_with_a_stop_string_has_the_tokens_that_usage_counts(http: FlaskClient, engine: ScriptedEngine) -> None:
    body = http.post(CHAT, json={"messages": HI, "logprobs": True, "stop": "wör"}).get_json()
    content = body["choices"][0]["logprobs"]["content"]
    assert body["choices"][0]["message"]["content"] == "Hello, "
    assert len(content) == body["usage"]["completion_tokens"] == len("Hello, wör".encode())


def test_an_impossible_token_is_minus_9999(http: FlaskClient, engine: ScriptedEngine) -> None:
    engine.logprob = lambda index, place: -math.inf
    sent = {"messages": HI, "logprobs": True, "top_logprobs": 1, "max_tokens": 1}
    [entry] = http.post(CHAT, json=sent).get_json()["choices"][0]["logprobs"]["content"]
    assert entry["logprob"] == entry["top_logprobs"][0]["logprob"] == -9999.0
    sent = {"prompt": "a", "logprobs": 1, "max_tokens": 1}
    logprobs = http.post(COMPLETIONS, json=sent).get_json()["choices"][0]["logprobs"]
    assert (logprobs["token_logprobs"], logprobs["top_logprobs"]) == ([-9999.0], [{"H": -9999.0}])


def test_completion(http: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer) -> None:
    body = http.post(COMPLETIONS, json={"prompt": "a", "max_tokens": 100, "logprobs": 2}).get_json()
    logprobs = Completion.model_validate(body).choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens == token_names(tokenizer)
    assert logprobs.token_logprobs == LOGPROBS
    assert logprobs.top_logprobs is not None
    assert logprobs.top_logprobs[0] == {"H": -0.25, "I": -1.25}
    assert logprobs.text_offset is not None
    text = body["choices"][0]["text"]
    assert [text[offset : offset + 1] for offset in logprobs.text_offset] == [*"Hello, wöörld! One two three.", ""]


def test_completion_stream(http: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer) -> None:
    engine.step_s = 0.003
    sent = {"prompt": ["a", "b"], "max_tokens": 100, "logprobs": 1, "stream": True, "stop": ["worX"]}
    whole: dict[int, dict[str, list[Any]]] = {i: {} for i in range(2)}
    for e in events(http.post(COMPLETIONS, json=sent).data)[:-1]:
        for name, values in e["choices"][0]["logprobs"].items():
            whole[e["choices"][0]["index"]].setdefault(name, []).extend(values)
    unstreamed = http.post(COMPLETIONS, json={**sent, "stream": False}).get_json()
    assert [choice["logprobs"] for choice in unstreamed["choices"]] == [whole[0], whole[1]]


def test_echo_with_logprobs_as_evaluation_harnesses_ask(
    http: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer
) -> None:
    prompts = [tokenizer.encode("Say é"), tokenizer.encode("So")]
    sent = {"prompt": prompts, "max_tokens": 1, "echo": True, "logprobs": 1, "temperature": 0, "seed": 1}
    body = http.post(COMPLETIONS, json=sent).get_json()
    for ids, text, choice in zip(prompts, ("Say é", "So"), body["choices"], strict=True):
        logprobs = choice["logprobs"]
        assert choice["text"] == text + "H"
        assert logprobs["token_logprobs"] == [None, *(-i / 2 for i in range(1, len(ids))), -0.25]
        assert logprobs["top_logprobs"][0] is None
        assert len(logprobs["tokens"]) == len(logprobs["text_offset"]) == len(ids) + 1
        assert logprobs["text_offset"][-1] == len(text)
        for name, tops in zip(logprobs["tokens"][1:], logprobs["top_logprobs"][1:], strict=True):
            assert max(tops, key=tops.get) == name
    assert body["choices"][0]["logprobs"]["text_offset"] == [0, 1, 2, 3, 4, 4, 5]
    streamed = events(http.post(COMPLETIONS, json={**sent, "prompt": prompts[0], "stream": True}).data)
    assert streamed[0]["choices"][0]["logprobs"] == body["choices"][0]["logprobs"]


def test_an_echoed_prompts_special_tokens(http: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer) -> None:
    """Those that are in its text have a place there; those that are not have none."""
    [end] = tokenizer.encode("<|end|>")
    cases: list[tuple[Any, str, list[int]]] = [
        ("a<|end|>b", "a<|end|>b", [0, 1, 8]),
        ([end, *tokenizer.encode("ab")], "ab", [0, 0, 1]),
    ]
    for prompt, text, offsets in cases:
        sent = {"prompt": prompt, "echo": True, "logprobs": 0, "max_tokens": 0}
        [choice] = http.post(COMPLETIONS, json=sent).get_json()["choices"]
        assert (choice["text"], choice["logprobs"]["text_offset"]) == (text, offsets)


def test_an_echoed_prompt_that_ends_within_a_character(
    http: FlaskClient, engine: ScriptedEngine, tokenizer: Tokenizer
) -> None:
    sent = {"prompt": tokenizer.encode("é")[:1], "echo": True, "logprobs": 0, "max_tokens": 2}
    [choice] = http.post(COMPLETIONS, json=sent).get_json()["choices"]
    assert (choice["text"], choice["logprobs"]["text_offset"]) == ("\ufffdHe", [0, 1, 2])


def test_prompt_logprobs_stand_where_vllm_has_them(http: FlaskClient, engine: ScriptedEngine) -> None:
    sent = {"prompt": ["Hé", "a"], "max_tokens": 1, "prompt_logprobs": 1, "n": 2}
    body = http.post(COMPLETIONS, json=sent).get_json()
    first = body["choices"][0]["prompt_logprobs"]
    assert first[0] is None
    assert [list(entry.values()) for entry in first[1:]] == [
        [{"logprob": -0.5, "rank": 3, "decoded_token": "bytes:\\xc3"}],
        [{"logprob": -1.0, "rank": 3, "decoded_token": "bytes:\\xa9"}],
    ]
    assert [len(choice["prompt_logprobs"]) for choice in body["choices"]] == [3, 3, 1, 1]
    # With echo the engine is asked for as many as either needs, and each shows its own number.
    sent = {"prompt": "abc", "max_tokens": 1, "prompt_logprobs": 3, "logprobs": 1, "echo": True}
    [choice] = http.post(COMPLETIONS, json=sent).get_json()["choices"]
    assert [len(entry) for entry in choice["prompt_logprobs"][1:]] == [3, 3]
    assert [len(tops) for tops in choice["logprobs"]["top_logprobs"][1:]] == [1, 1, 1]
    assert engine.generated[-1].params.prompt_logprobs == 3
    chat = http.post(CHAT, json={"messages": HI, "max_tokens": 1, "prompt_logprobs": 0}).get_json()
    assert len(chat["prompt_logprobs"]) == chat["usage"]["prompt_tokens"]
    assert "prompt_logprobs" not in chat["choices"][0]
    plain = http.post(CHAT, json={"messages": HI, "max_tokens": 1}).get_json()
    assert "prompt_logprobs" not in plain


def test_a_large_answer_is_written_beside_other_requests(http: FlaskClient, engine: ScriptedEngine) -> None:
    sent = {"prompt": "x" * 400, "max_tokens": 0, "echo": True, "logprobs": 20}
    [choice] = http.post(COMPLETIONS, json=sent).get_json()["choices"]
    assert len(choice["logprobs"]["tokens"]) == 400
    assert {len(tops) for tops in choice["logprobs"]["top_logprobs"][1:]} == {20}


def test_tgi_details(http: FlaskClient, engine: ScriptedEngine) -> None:
    parameters = {"details": True, "decoder_input_details": True, "top_n_tokens": 2, "max_new_tokens": 5, "seed": 7}
    [body] = http.post(INVOCATIONS, json={"inputs": "ab", "parameters": parameters}).get_json()
    details = body["details"]
    assert set(details) == {"finish_reason", "generated_tokens", "seed", "prefill", "tokens", "top_tokens"}
    assert (details["finish_reason"], details["generated_tokens"], details["seed"]) == ("length", 5, 7)
    assert [(one["text"], one["logprob"]) for one in details["prefill"]] == [("a", None), ("b", -0.5)]
    assert [one["text"] for one in details["tokens"]] == list("Hello")
    assert [one["logprob"] for one in details["tokens"]] == LOGPROBS[:5]
    assert all(set(one) == {"id", "text", "logprob", "special"} for one in details["tokens"])
    assert [one["text"] for one in details["top_tokens"][0]] == ["H", "I"]
    for stop, reason in ((["wör"], "stop_sequence"), ([], "eos_token")):
        parameters = {"details": True, "stop": stop}
        [body] = http.post(INVOCATIONS, json={"inputs": "ab", "parameters": parameters}).get_json()
        assert body["details"]["finish_reason"] == reason
        assert body["details"]["prefill"] == []
        assert len(body["details"]["tokens"]) == body["details"]["generated_tokens"]


def test_tgi_best_of(http: FlaskClient, engine: ScriptedEngine) -> None:
    engine.logprob = lambda index, place: {0: -2.0, 1: -0.5, 2: -1.0}[index]
    parameters: dict[str, Any] = {"best_of": 3, "do_sample": True, "max_new_tokens": 2, "return_full_text": True}
    [body] = http.post(INVOCATIONS, json={"inputs": "ab", "parameters": parameters}).get_json()
    assert body == {"generated_text": "abHe"}
    assert (engine.generated[-1].params.n, engine.generated[-1].params.logprobs) == (3, 0)
    parameters["details"] = True
    [body] = http.post(INVOCATIONS, json={"inputs": "ab", "parameters": parameters}).get_json()
    others = body["details"]["best_of_sequences"]
    assert body["details"]["tokens"][0]["logprob"] == -0.5
    assert [other["tokens"][0]["logprob"] for other in others] == [-1.0, -2.0]
    assert [other["generated_text"] for other in others] == ["abHe", "abHe"]


def test_tgi_stream_with_details(http: FlaskClient, engine: ScriptedEngine) -> None:
    parameters = {"details": True, "top_n_tokens": 1, "max_new_tokens": 3, "seed": 1}
    response = http.post(INVOCATIONS, json={"inputs": "ab", "parameters": parameters, "stream": True})
    got = [json.loads(line.removeprefix("data: ")) for line in response.text.split("\n\n") if line]
    assert [e["top_tokens"][0]["id"] for e in got] == [e["token"]["id"] for e in got]
    assert [e["details"] for e in got[:-1]] == [None, None]
    ending = {"finish_reason": "length", "generated_tokens": 3, "seed": 1, "input_length": 2}
    assert got[-1]["details"] == ending


def test_merged_outputs_keep_their_logprobs() -> None:
    from container.mailbox import merge

    def output(ids: list[int], **fields: Any) -> RequestOutput:
        entries = [TokenLogprobs(float(token_id), 1, [], []) for token_id in ids]
        return RequestOutput(request_id=1, index=0, new_token_ids=ids, logprobs=entries, **fields)

    prompt = [TokenLogprobs(-1.0, 1, [], [])]
    merged = merge(merge(output([1], prompt_logprobs=prompt), output([2, 3])), output([4], finish_reason="length"))
    assert merged.new_token_ids == [1, 2, 3, 4]
    assert [entry.logprob for entry in merged.logprobs or []] == [1.0, 2.0, 3.0, 4.0]
    assert merged.prompt_logprobs == prompt


@pytest.mark.parametrize(
    ("url", "body", "is_over", "param"),
    [
        (COMPLETIONS, {"prompt": ["a", "b"], "max_tokens": 100, "logprobs": 4, "n": 1}, {"n": 2}, "logprobs"),
        (COMPLETIONS, {"prompt": "a", "max_tokens": 100, "n": 1, "best_of": 10}, {"max_tokens": 101}, "best_of"),
        # Without max_tokens it is the context that bounds a text.
        (CHAT, {"messages": HI, "logprobs": True, "top_logprobs": 1}, {"n": 2}, "top_logprobs"),
        (
            INVOCATIONS,
            {"inputs": "a", "parameters": {"max_new_tokens": 100, "details": True}},
            {"parameters": {"max_new_tokens": 101, "details": True, "top_n_tokens": 10}},
            "parameters.top_n_tokens",
        ),
    ],
)
def test_no_request_asks_for_more_log_probabilities_than_a_worker_can_hold(
    http: FlaskClient, monkeypatch: pytest.MonkeyPatch, url: str, body: Any, is_over: Any, param: str
) -> None:
    monkeypatch.setattr(text_run, "_MAX_LOGPROBS", 1000)
    assert http.post(url, json=body).status_code == 200
    response = http.post(url, json={**body, **is_over})
    assert (response.status_code, response.get_json()["error"]["param"]) == (400, param)
