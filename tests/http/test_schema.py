"""A field takes effect, or the request is refused by its name: tables of body → status, param."""

from typing import Any

import pytest
from flask.testing import FlaskClient

from tests.http.scripted_engine import ScriptedEngine
from tests.http.tiny_model import MAX_MODEL_LEN

HI = [{"role": "user", "content": "Hi"}]
CHAT, COMPLETIONS, INVOCATIONS = "/v1/chat/completions", "/v1/completions", "/invocations"
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}

# Added to a good chat body: accepted, because it takes effect or is neutral.
ACCEPTED: list[dict[str, Any]] = [
    {},
    {"model": ""},
    {"model": "tiny"},
    {"temperature": 0},
    {"temperature": None, "top_p": None, "top_k": None, "n": None, "stop": None, "seed": None, "tools": None},
    {"top_k": -1, "top_p": 0.5, "seed": -5},
    {"stop": "x"},
    {"stop": ["x", "y"]},
    {"stop": []},
    {"stop_token_ids": [1, 2], "ignore_eos": False, "skip_special_tokens": False},
    {"presence_penalty": 0, "frequency_penalty": 0.0, "repetition_penalty": 1.0, "logit_bias": {}, "min_p": 0},
    {"logprobs": False, "top_logprobs": 0},
    {"logprobs": None, "top_logprobs": None, "best_of": None, "anything": None},
    {"response_format": {"type": "text"}, "parallel_tool_calls": True, "modalities": ["text"]},
    {"tools": [], "tool_choice": "auto"},
    {"tools": [TOOL], "tool_choice": "none"},
    {"functions": None, "function_call": None},
    {"user": "me", "metadata": {"a": "b"}, "store": True, "service_tier": "flex", "prompt_cache_key": "k"},
    {"safety_identifier": "s"},
    {"chat_template_kwargs": {"shout": True, "list": [1], "object": {"a": None}}},
    {"stream": False, "stream_options": None},
    {"stream_options": {}},
    {"stream_options": {"include_usage": False}},
    {"add_special_tokens": False},
    {"messages": [*HI, {"role": "assistant", "content": None, "tool_calls": [CALL]}, {"role": "tool", "content": "1"}]},
    {"messages": [*HI, {"role": "assistant", "content": "a", "refusal": None, "annotations": [], "audio": None}, *HI]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}], "name": "me"}]},
    {"messages": [{"role": "assistant", "content": "a", "reasoning_content": "hm"}, *HI]},
]

# Added to a good chat body: refused, by the field's name.
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"messages": None}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": ["hi"]}, "messages[0]"),
    ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
    ({"messages": [*HI, {"role": 5, "content": "x"}]}, "messages[1].role"),
    ({"messages": [{"content": "x"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": "x", "mood": "good"}]}, "messages[0].mood"),
    ({"messages": [{"role": "user", "content": "x", "tool_calls": [CALL]}]}, "messages[0].tool_calls"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"temperature": -1}, "temperature"),
    ({"temperature": 1e30}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"top_k": 1.5}, "top_k"),
    ({"n": 0}, "n"),
    ({"n": True}, "n"),
    ({"n": 129}, "n"),
    ({"seed": 2**63}, "seed"),
    ({"seed": 1.5}, "seed"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 10**30}, "max_tokens"),
    ({"max_tokens": MAX_MODEL_LEN}, "max_tokens"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"max_completion_tokens": MAX_MODEL_LEN}, "max_completion_tokens"),
    ({"stop": ""}, "stop"),
    ({"stop": ["x"] * 17}, "stop"),
    ({"stop": [1]}, "stop[0]"),
    ({"stop_token_ids": [10**6]}, "stop_token_ids"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"other": 1}}, "stream_options.other"),
    ({"stream": True, "stream_options": {"continuous_usage_stats": True}}, "stream_options.continuous_usage_stats"),
    ({"presence_penalty": False}, "presence_penalty"),
    ({"frequency_penalty": "0"}, "frequency_penalty"),
    ({"presence_penalty": 2.1}, "presence_penalty"),
    ({"frequency_penalty": -2.1}, "frequency_penalty"),
    ({"frequency_penalty": 1e300}, "frequency_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"repetition_penalty": 1e-300}, "repetition_penalty"),  # 0 in float32: the logits would be infinite
    ({"repetition_penalty": 101}, "repetition_penalty"),
    ({"min_p": 1.5}, "min_p"),
    ({"min_p": "x"}, "min_p"),
    ({"logit_bias": {"1": 101}}, "logit_bias"),
    ({"logit_bias": {"1": "x"}}, "logit_bias"),
    ({"logit_bias": {"1": None}}, "logit_bias"),
    ({"logit_bias": {"one": 1}}, "logit_bias"),
    ({"logit_bias": {"-1": 1}}, "logit_bias"),
    ({"logit_bias": {"1.0": 1}}, "logit_bias"),
    ({"logit_bias": {"٣": 1}}, "logit_bias"),
    ({"logit_bias": {"01": 1}}, "logit_bias"),
    ({"logit_bias": {"9" * 1000: 1}}, "logit_bias"),
    ({"logit_bias": {"257": 1}}, "logit_bias"),
    ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"),
    ({"logit_bias": [[1, 1]]}, "logit_bias"),
    ({"bad_words": "x"}, "bad_words"),
    ({"bad_words": [""]}, "bad_words"),
    ({"bad_words": ["x"] * 257}, "bad_words"),
    ({"allowed_token_ids": []}, "allowed_token_ids"),
    ({"allowed_token_ids": [257]}, "allowed_token_ids"),
    ({"allowed_token_ids": [-1]}, "allowed_token_ids"),
    ({"allowed_token_ids": ["1"]}, "allowed_token_ids[0]"),
    ({"min_tokens": -1}, "min_tokens"),
    ({"min_tokens": 10**30}, "min_tokens"),
    ({"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
    ({"include_stop_str_in_output": 1}, "include_stop_str_in_output"),
    ({"priority": 2**31}, "priority"),
    ({"priority": 1.5}, "priority"),
    ({"cache_salt": ""}, "cache_salt"),
    ({"cache_salt": "x" * 257}, "cache_salt"),
    ({"cache_salt": 5}, "cache_salt"),
    ({"prompt_logprobs": 21}, "prompt_logprobs"),
    ({"prompt_logprobs": -1}, "prompt_logprobs"),
    ({"prompt_logprobs": True}, "prompt_logprobs"),
    ({"prompt_logprobs": 0, "stream": True}, "prompt_logprobs"),
    ({"logprobs": 1}, "logprobs"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"top_logprobs": -1}, "top_logprobs"),
    ({"top_logprobs": 2, "logprobs": False}, "top_logprobs"),
    ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
    ({"top_logprobs": -1, "logprobs": True}, "top_logprobs"),
    ({"top_logprobs": True, "logprobs": True}, "top_logprobs"),
    ({"best_of": 2}, "best_of"),
    ({"echo": True}, "echo"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"parallel_tool_calls": False}, "parallel_tool_calls"),
    ({"tools": [TOOL], "tool_choice": "required"}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
    ({"tools": [{"type": "retrieval", "function": {"name": "f"}}]}, "tools[0].type"),
    ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
    ({"tools": [{"type": "function", "function": {"name": "f", "strict": True}}]}, "tools[0].function.strict"),
    ({"functions": [{"name": "f"}]}, "functions"),
    ({"chat_template_kwargs": []}, "chat_template_kwargs"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
    ({"chat_template": "x"}, "chat_template"),
    ({"add_special_tokens": True}, "add_special_tokens"),
    ({"max_tokens": 10**400}, "max_tokens"),
    ({"max_completion_tokens": 10**400}, "max_completion_tokens"),
    ({"temprature": 1}, "temprature"),
    ({"x" * 1000: 1}, "x" * 100 + "…"),
]

COMPLETION_BODIES: list[tuple[dict[str, Any], int, str | None]] = [
    ({"prompt": "a"}, 200, None),
    ({"prompt": ["a", "b"]}, 200, None),
    ({"prompt": [1, 2]}, 200, None),
    ({"prompt": [[1, 2], [3]]}, 200, None),
    ({"prompt": "a", "best_of": 2, "n": 2, "suffix": "", "echo": False, "logprobs": None}, 200, None),
    ({}, 400, None),
    ({"prompt": None}, 400, "prompt"),
    ({"prompt": ""}, 400, "prompt"),
    ({"prompt": []}, 400, "prompt"),
    ({"prompt": [[]]}, 400, "prompt"),
    ({"prompt": [1, "a"]}, 400, "prompt"),
    ({"prompt": ["a", [1]]}, 400, "prompt"),
    ({"prompt": [True]}, 400, "prompt[0]"),
    ({"prompt": [1.5]}, 400, "prompt[0]"),
    ({"prompt": [-1]}, 400, "prompt"),
    ({"prompt": [10**6]}, 400, "prompt"),
    ({"prompt": [10**30]}, 400, "prompt"),
    ({"prompt": ["a"] * 1025}, 400, "prompt"),
    ({"prompt": ["a"] * 1024, "n": 2}, 400, "n"),
    ({"prompt": "a", "n": 10**9}, 400, "n"),
    ({"prompt": "a", "add_special_tokens": True}, 200, None),
    ({"prompt": "a", "add_special_tokens": False}, 400, "add_special_tokens"),
    ({"prompt": "a", "messages": None}, 200, None),
    ({"prompt": {"a": 1}}, 400, "prompt"),
    ({"prompt": [{"a": 1}]}, 400, "prompt[0]"),
    ({"prompt": [[1], 5]}, 400, "prompt"),
    ({"prompt": [[1, "a"]]}, 400, "prompt"),
    ({"prompt": [None]}, 400, "prompt[0]"),
    ({"prompt": [1] * MAX_MODEL_LEN}, 400, "prompt"),
    ({"prompt": "x" * 500_000}, 400, "prompt"),
    ({"prompt": "a", "best_of": 2, "n": 3}, 400, "best_of"),
    ({"prompt": "a", "best_of": 0}, 400, "best_of"),
    ({"prompt": "a", "best_of": 129}, 400, "best_of"),
    ({"prompt": "a", "best_of": 2, "stream": True}, 400, "best_of"),
    ({"prompt": ["a"] * 1024, "best_of": 2}, 400, "best_of"),
    ({"prompt": "a", "best_of": "2"}, 400, "best_of"),
    ({"prompt": "a", "suffix": "b"}, 400, "suffix"),
    ({"prompt": "a", "logprobs": False}, 200, None),
    ({"prompt": "a", "logprobs": True}, 400, "logprobs"),
    ({"prompt": "a", "logprobs": 21}, 400, "logprobs"),
    ({"prompt": "a", "logprobs": -1, "echo": True}, 400, "logprobs"),
    ({"prompt": "a", "logprobs": 1.5}, 400, "logprobs"),
    ({"prompt": "a", "top_logprobs": 0}, 400, "top_logprobs"),
    ({"prompt": "a", "echo": 1}, 400, "echo"),
    ({"prompt": [10**30], "echo": True}, 400, "prompt"),
    ({"prompt": "a", "max_tokens": 0}, 400, "max_tokens"),
    ({"prompt": "a", "max_tokens": -1, "echo": True}, 400, "max_tokens"),
    ({"prompt": "a", "max_tokens": 0, "echo": True, "min_tokens": 1}, 400, "min_tokens"),
    ({"prompt": "a", "cache_salt": "\ud800"}, 400, None),
    ({"prompt": ["a" * 400] * 1000, "prompt_logprobs": 2}, 400, "prompt_logprobs"),
    ({"prompt": ["a" * 400] * 10, "n": 100, "logprobs": 2, "echo": True}, 400, "logprobs"),
    ({"prompt": ["a"] * 2, "allowed_token_ids": [1], "logit_bias": {"257": 1}}, 400, "logit_bias"),
    ({"prompt": ["a", [257]], "allowed_token_ids": [1]}, 400, "prompt"),
    ({"prompt": "a", "logit_bias": None, "bad_words": None, "allowed_token_ids": None, "min_tokens": None}, 200, None),
    ({"prompt": "a", "priority": None, "cache_salt": None, "echo": None, "logprobs": None}, 200, None),
]

TGI_BODIES: list[tuple[dict[str, Any], int, str | None]] = [
    ({"inputs": "a"}, 200, None),
    ({"inputs": "a", "parameters": {}}, 200, None),
    ({"inputs": "a", "parameters": None, "stream": False}, 200, None),
    (
        {"inputs": "a", "parameters": {"details": False, "watermark": False, "typical_p": 1.0, "truncate": None}},
        200,
        None,
    ),
    ({"inputs": 5}, 400, "inputs"),
    ({"inputs": ["a", "b"]}, 200, None),
    ({"inputs": []}, 400, "inputs"),
    ({"inputs": ["a", 5]}, 400, "inputs"),
    ({"inputs": [[1, 2]]}, 400, "inputs"),
    ({"inputs": {"text": "a"}}, 400, "inputs"),
    ({"inputs": ["a"] * 1025}, 400, "inputs"),
    ({"inputs": ["a"] * 9, "parameters": {"best_of": 128, "do_sample": True}}, 400, "inputs"),
    ({"inputs": ["a", "b"], "stream": True}, 400, "inputs"),
    ({"inputs": "a", "mood": 1}, 400, "mood"),
    ({"inputs": "a", "parameters": 5}, 400, "parameters"),
    ({"inputs": "a", "parameters": {"max_new_tokens": 0}}, 400, "parameters.max_new_tokens"),
    ({"inputs": "a", "parameters": {"max_new_tokens": MAX_MODEL_LEN}}, 400, "parameters.max_new_tokens"),
    ({"inputs": "a", "parameters": {"temperature": -1, "do_sample": True}}, 400, "parameters.temperature"),
    ({"inputs": "a", "parameters": {"temperature": 5, "do_sample": False}}, 400, "parameters.temperature"),
    ({"inputs": "a", "parameters": {"temperature": 0, "do_sample": True}}, 400, "parameters.temperature"),
    ({"inputs": "a", "parameters": {"top_k": 5, "do_sample": False}}, 400, "parameters.top_k"),
    ({"inputs": "a", "parameters": {"temperature": 1.0, "top_p": 1.0, "do_sample": False}}, 200, None),
    ({"inputs": "a", "parameters": {"max_new_tokens": 10**400}}, 400, "parameters.max_new_tokens"),
    ({"inputs": "a", "parameters": {"stop": "x"}}, 400, "parameters.stop"),
    ({"inputs": "a", "parameters": {"details": 1}}, 400, "parameters.details"),
    ({"inputs": "a", "parameters": {"best_of": 1, "top_n_tokens": 0, "decoder_input_details": False}}, 200, None),
    ({"inputs": "a", "parameters": {"repetition_penalty": 0}}, 400, "parameters.repetition_penalty"),
    ({"inputs": "a", "parameters": {"frequency_penalty": 3}}, 400, "parameters.frequency_penalty"),
    ({"inputs": "a", "parameters": {"decoder_input_details": True}}, 400, "parameters.decoder_input_details"),
    (
        {"inputs": "a", "parameters": {"decoder_input_details": True, "details": True}, "stream": True},
        400,
        "parameters.decoder_input_details",
    ),
    ({"inputs": "a", "parameters": {"top_n_tokens": 2}}, 400, "parameters.top_n_tokens"),
    ({"inputs": "a", "parameters": {"top_n_tokens": 21, "details": True}}, 400, "parameters.top_n_tokens"),
    ({"inputs": "a", "parameters": {"best_of": 2, "do_sample": False}}, 400, "parameters.best_of"),
    ({"inputs": "a", "parameters": {"best_of": 2, "do_sample": True}, "stream": True}, 400, "parameters.best_of"),
    ({"inputs": "a", "parameters": {"best_of": 129, "do_sample": True}}, 400, "parameters.best_of"),
    ({"inputs": "a", "parameters": {"best_of": 0, "do_sample": True}}, 400, "parameters.best_of"),
    ({"inputs": "a", "parameters": {"truncate": 0}}, 400, "parameters.truncate"),
    ({"inputs": "a", "parameters": {"typical_p": 0.5}}, 400, "parameters.typical_p"),
    ({"inputs": "a", "parameters": {"watermark": True}}, 400, "parameters.watermark"),
    ({"inputs": "a", "parameters": {"best_of": 2}}, 400, "parameters.best_of"),
    ({"inputs": "a", "parameters": {"max_tokens": 5}}, 400, "parameters.max_tokens"),
    ({"inputs": "a", "parameters": {"num_beams": 1, "length_penalty": 1, "early_stopping": False}}, 200, None),
    ({"inputs": "a", "parameters": {"num_beams": 2}}, 400, "parameters.num_beams"),
    ({"inputs": "a", "parameters": {"min_p": 2, "temperature": 1}}, 400, "parameters.min_p"),
    ({"inputs": "a", "parameters": {"min_p": 0.5, "do_sample": False}}, 400, "parameters.min_p"),
    ({"inputs": "a", "parameters": {"presence_penalty": 3}}, 400, "parameters.presence_penalty"),
    ({"inputs": "a", "parameters": {"min_tokens": 200}}, 400, "parameters.min_tokens"),
    ({"inputs": "a", "parameters": {"stop_token_ids": [-1]}}, 400, "parameters.stop_token_ids"),
    ({"inputs": "a", "parameters": {"skip_special_tokens": False, "include_stop_str_in_output": True}}, 200, None),
    ({"inputs": "x" * 500_000}, 400, "inputs"),
]


def check(http: FlaskClient, url: str, body: Any, status: int, param: str | None) -> None:
    response = http.post(url, json=body)
    assert response.status_code == status, response.text
    if status >= 400:
        error = response.get_json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["param"] == param, error
        assert len(error["message"]) < 400
        for word in ("$", "Traceback", "msgspec", "Object"):
            assert word not in error["message"]


@pytest.mark.parametrize("fields", ACCEPTED, ids=lambda fields: str(fields)[:60])
def test_accepted(http: FlaskClient, engine: ScriptedEngine, fields: dict[str, Any]) -> None:
    check(http, CHAT, {"messages": HI, "max_tokens": 2, **fields}, 200, None)


@pytest.mark.parametrize(("fields", "param"), REFUSED, ids=lambda value: str(value)[:60])
def test_refused(http: FlaskClient, engine: ScriptedEngine, fields: dict[str, Any], param: str) -> None:
    for url in (CHAT, INVOCATIONS):
        check(http, url, {"messages": HI, **fields}, 400, param)
    assert engine.generated == []


@pytest.mark.parametrize(("body", "status", "param"), COMPLETION_BODIES, ids=lambda value: str(value)[:60])
def test_completions(
    http: FlaskClient, engine: ScriptedEngine, body: dict[str, Any], status: int, param: str | None
) -> None:
    check(http, COMPLETIONS, body, status, param if body else "prompt")
    check(http, INVOCATIONS, body, status, param)


@pytest.mark.parametrize(("body", "status", "param"), TGI_BODIES, ids=lambda value: str(value)[:60])
def test_generate(
    http: FlaskClient, engine: ScriptedEngine, body: dict[str, Any], status: int, param: str | None
) -> None:
    check(http, INVOCATIONS, body, status, param)


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b"", "application/json", 204),
        (b"  ", "application/json", 204),
        (b"not json", "application/json", 400),
        (b'"text"', "application/json", 400),
        (b"[]", "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b'{"a":' * 100_000, "application/json", 400),
        (b'{"messages": [{"role": "user", "content": "\xff"}]}', "application/json", 400),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "application/json", 400),
        (b'{"prompt": "a", "user": "\xff"}', "application/json", 400),
        (b'{"prompt": [NaN]}', "application/json", 400),
        (b'{"prompt": "a", "temperature": NaN}', "application/json", 400),
        (b'{"prompt": "a", "temperature": 1e999}', "application/json", 400),
        (b'{"prompt": "a"}', "", 200),
        (b'{"prompt": "a"}', "application/json; charset=utf-8", 200),
        (b'{"prompt": "a"}', 'Application/JSON;charset="UTF-8"', 200),
        (b'{"prompt": "a"}', "application/json; charset=latin-1", 415),
        (b'{"prompt": "a"}', "text/csv", 415),
        (b"prompt=a", "application/x-www-form-urlencoded", 415),
        (b" " * (2**20 + 1), "application/json", 413),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bodies(http: FlaskClient, engine: ScriptedEngine, body: bytes, content_type: str, status: int) -> None:
    response = http.post(INVOCATIONS, data=body, headers={"Content-Type": content_type} if content_type else {})
    assert response.status_code == status, response.text
    if status >= 400:
        assert set(response.get_json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("name", ["", "tiny", "/opt/ml/model", "tgi", "lmi", "PATH", "PATH/"])
def test_the_served_model_by_the_names_that_clients_send(http: FlaskClient, engine: ScriptedEngine, name: str) -> None:
    name = name.replace("PATH", engine.model.model_dir)
    assert http.post(CHAT, json={"messages": HI, "model": name}).get_json()["model"] == "tiny"


@pytest.mark.parametrize("num_chars", [10, 500_000])
def test_a_field_that_nobody_knows_may_be_null_in_a_body_of_any_size(
    http: FlaskClient, engine: ScriptedEngine, num_chars: int
) -> None:
    body = {"prompt": "a", "max_tokens": 2, "user": "x" * num_chars}
    assert http.post(COMPLETIONS, json={**body, "mood": None}).status_code == 200
    assert http.post(COMPLETIONS, json={**body, "mood": 1}).get_json()["error"]["param"] == "mood"


@pytest.mark.parametrize("url", [CHAT, INVOCATIONS])
def test_another_models_name_is_not_found(http: FlaskClient, engine: ScriptedEngine, url: str) -> None:
    response = http.post(url, json={"messages": HI, "model": "gpt-none"})
    assert response.status_code == 404
    assert response.get_json()["error"]["param"] == "model"
    assert response.get_json()["error"]["code"] == "model_not_found"
