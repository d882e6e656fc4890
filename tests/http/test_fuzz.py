"""Whatever the body, the answer is a good one or names what is wrong: never a 5xx, never a broken shape."""

from typing import Any

from flask.testing import FlaskClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.http.scripted_engine import ScriptedEngine

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([-1, 0, 1, 2, 2**31, 2**63, 10**40]),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
    st.sampled_from(["user", "assistant", "system", "text", "auto", "none", "function"]),
)
# fmt: off
NAMES = (
    "role", "content", "type", "text", "name", "function", "tool_calls", "arguments", "id", "parameters", "strict",
    "include_usage", "tool_call_id", "max_new_tokens", "do_sample", "temperature", "top_k",
    "1", "256", "details", "decoder_input_details", "top_n_tokens", "best_of", "truncate", "repetition_penalty",
    "frequency_penalty",
)
FIELDS = (
    "messages", "prompt", "inputs", "parameters", "model", "temperature", "top_p", "top_k", "n", "stop", "seed",
    "stop_token_ids", "ignore_eos", "stream", "stream_options", "max_tokens", "max_completion_tokens", "tools",
    "tool_choice", "chat_template_kwargs", "logit_bias", "logprobs", "response_format", "best_of", "echo", "suffix",
    "user", "metadata", "skip_special_tokens", "presence_penalty", "whatever", "frequency_penalty", "min_p",
    "repetition_penalty", "bad_words", "allowed_token_ids", "min_tokens", "prompt_logprobs", "top_logprobs", "priority",
    "cache_salt", "include_stop_str_in_output",
)
# fmt: on
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(NAMES), inner, max_size=3)),
    max_leaves=8,
)
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "tool"]), "content": VALUES}), max_size=3
)
PROMPTS = st.one_of(VALUES, st.text(max_size=20), st.lists(st.integers(0, 300), max_size=5))


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    fields=st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=4),
    main=st.one_of(
        st.fixed_dictionaries({"messages": MESSAGES}),
        st.fixed_dictionaries({"prompt": PROMPTS}),
        st.fixed_dictionaries({"inputs": st.text(max_size=5), "parameters": VALUES}),
        st.just({}),
    ),
    path=st.sampled_from(["/invocations", "/v1/chat/completions", "/v1/completions"]),
)
def test_any_body(http: FlaskClient, engine: ScriptedEngine, fields: dict[str, Any], main: Any, path: str) -> None:
    response = http.post(path, json={"max_tokens": 2, **fields, **main} if "inputs" not in main else {**fields, **main})
    assert response.status_code in (200, 400, 404), response.text
    if response.status_code != 200:
        error = response.get_json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert len(error["message"]) < 1000
    elif response.content_type.startswith("text/event-stream"):
        assert b'"error"' not in response.data
