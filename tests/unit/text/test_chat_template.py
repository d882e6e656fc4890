"""Chat templates: the same prompts as transformers renders, and one clear error for what a template refuses."""

import json
from pathlib import Path
from typing import Any

import jinja2
import pytest
import transformers
from packaging.version import Version

from engine.api import InvalidRequest
from engine.text import ChatTemplate, Tokenizer
from tests.unit.text.builders import build_byte_level

CHATML = """
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- "Call these:\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=messages|length - 1) %}
{%- for message in messages %}
    {%- if message.role == 'system' %}{% continue %}{% endif %}
    {{- '<|im_start|>' + message.role }}
    {%- if message.content is string %}
        {{- '\\n' + message.content.split('</think>')[-1] }}
    {%- endif %}
    {%- for call in message.tool_calls or [] %}
        {{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
        {{- call.function.arguments | tojson }}
        {{- '}\\n</tool_call>' }}
        {%- for name, value in call.function.arguments.items() %}{{ ' ' + name }}{% endfor %}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
    {%- if loop.index0 == ns.last %}{% set ns.last = -1 %}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

LLAMA = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- endif %}
<|start|>system

Today: {{ date_string }}{{ eos_token }}
{% for message in messages %}
    {% if message['content'] is not defined %}
nothing
    {% else %}
<|start|>{{ message['role'] }}

{% generation %}{{ message['content'] | trim }}{% endgeneration %}{{ eos_token }}
    {% endif %}
{% endfor %}
{% if add_generation_prompt %}<|start|>assistant{{ '\\n\\n' }}{% endif %}"""

ALTERNATING = """{{ bos_token }}{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
{% endif %}
{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}
{% else %}{{ message['content'] + eos_token }}{% endif %}
{% endfor %}"""

PARTS = """{% macro show(content) %}{% if content is string %}{{ content }}{% else %}
{% for part in content %}<part>{{ part.text }}</part>{% endfor %}{% endif %}{% endmacro %}
{% for message in messages %}{{ message.role }}: {{ show(message.content) }}
{% endfor %}"""

REASONS = ("reasoning_content", "thinking", "reasoning")
REASONING = """{% for message in messages %}{{ message.reasoning_content }}/{{ message.thinking }} {% endfor %}"""

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Wetter für <Städte> & 'Länder'",
        "parameters": {"type": "object", "properties": {"z": {"type": "string"}, "a": {"type": "integer"}}},
    },
}
CALL = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": {"z": "Zürich", "a": 1}}}
QUESTION = {"role": "user", "content": "  Wie ist das <Wetter>? 世界 🎉\n"}
TALK = [
    {"role": "system", "content": "Be {{ brief }}."},
    QUESTION,
    {"role": "assistant", "content": "<think>hm</think>Sunny."},
    QUESTION,
]
TOOL_TALK = [
    *TALK,
    {"role": "assistant", "content": None, "tool_calls": [CALL, CALL]},
    {"role": "tool", "content": '{"temperature": 21}', "name": None},
]
# Older versions neither drop null keys nor know the aliases of reasoning_content.
AS_OF_5_23 = pytest.mark.skipif(Version(transformers.__version__) < Version("5.23"), reason="transformers is older")
SPECIAL = {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}


def theirs(source: str, messages: list[dict[str, Any]], **arguments: Any) -> str:
    reference = transformers.PreTrainedTokenizerFast(tokenizer_object=build_byte_level(), **SPECIAL)
    arguments.setdefault("add_generation_prompt", True)
    return reference.apply_chat_template(messages, chat_template=source, tokenize=False, **arguments)


def template(source: str) -> ChatTemplate:
    return ChatTemplate({"default": source}, SPECIAL)


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize(
    ("source", "messages", "tools", "kwargs"),
    [
        (CHATML, TALK, None, {}),
        (CHATML, TALK[1:], [TOOL, TOOL], {"enable_thinking": False}),
        (CHATML, TOOL_TALK, [TOOL], {"enable_thinking": True}),
        (LLAMA, TALK, None, {}),
        (LLAMA, TALK, None, {"date_string": "26 Jul 2024"}),
        pytest.param(LLAMA, [{"role": "assistant", "content": None}, QUESTION], None, {}, marks=AS_OF_5_23),
        (ALTERNATING, TALK[1:], None, {}),
        pytest.param(
            REASONING,
            [*TALK, *({"role": "assistant", "content": "a", name: "why"} for name in REASONS)],
            None,
            {},
            marks=AS_OF_5_23,
        ),
        (PARTS, [QUESTION, {"role": "user", "content": [{"type": "text", "text": "a"}]}], None, {}),
    ],
)
def test_renders_as_transformers_does(
    source: str,
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]] | None,
    kwargs: dict[str, Any],
    add_generation_prompt: bool,
) -> None:
    before = json.dumps(messages)
    ours = template(source).render(messages, tools=tools, kwargs=kwargs, add_generation_prompt=add_generation_prompt)
    assert ours == theirs(source, messages, tools=tools, add_generation_prompt=add_generation_prompt, **kwargs)
    assert json.dumps(messages) == before


def test_arguments_of_tool_calls_become_objects() -> None:
    written = {**CALL, "function": {"name": "weather", "arguments": '{"z": "Zürich", "a": 1}'}}
    as_text = [QUESTION, {"role": "assistant", "tool_calls": [written]}]
    as_object = [QUESTION, {"role": "assistant", "tool_calls": [CALL]}]
    assert template(CHATML).render(as_text) == template(CHATML).render(as_object)
    empty = {**CALL, "function": {"name": "weather", "arguments": ""}}
    assert '"arguments": {}' in template(CHATML).render([{"role": "assistant", "tool_calls": [empty]}])


def test_text_parts_become_a_string_unless_the_template_takes_parts() -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}, "c"]}]
    assert "user\nabc<|im_end|>" in template(CHATML).render(messages)
    assert "[INST] abc [/INST]" in template(ALTERNATING).render(messages)
    assert "<part>a</part><part>b</part><part>c</part>" in template(PARTS).render(messages)


@pytest.mark.parametrize(
    ("source", "takes_parts"),
    [
        ("{% for part in message['content'] %}{% endfor %}", True),
        ("{% set body = message.content %}{% for part in body %}{% endfor %}", True),
        ("{% for line in message.content.split('\n') %}{% endfor %}", False),
        ("{% for message in messages %}{{ message.content }}{% endfor %}", False),
    ],
)
def test_templates_that_take_parts_are_told_by_their_loops(source: str, takes_parts: bool) -> None:
    wrapped = "{{ messages[0].content is string }}{% set message = messages[0] %}" + source
    parts = [{"type": "text", "text": "a"}]
    assert template(wrapped).render([{"role": "user", "content": parts}]).startswith(str(not takes_parts))


@pytest.mark.parametrize(
    ("source", "messages", "words"),
    [
        (ALTERNATING, TALK, "roles must alternate"),
        ("{{ messages[0].nothing.there }}", [QUESTION], "has no attribute"),
        ("{{ messages[0].content + 1 }}", [QUESTION], "concatenate"),
        ("{{ messages[0].content % 1 }}", [QUESTION], "refuses"),
        ("{{ 1 / (messages|length - 1) }}", [QUESTION], "division"),
        ("{% for i in range(100001) %}{% endfor %}", [QUESTION], "[Rr]ange"),
        ("{{ messages.append(1) }}", [QUESTION], "unsafe|not safely"),
        ("{{ ''.__class__.__mro__ }}", [QUESTION], "unsafe"),
        ("{{ '{0.__class__.__mro__}'.format(1) }}", [QUESTION], "undefined|unsafe"),
        ("{{ lipsum() }}", [QUESTION], "undefined"),
        (CHATML, [], "at least one"),
        (CHATML, ["hello"], "must be an object"),
        (CHATML, [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "text only"),
        (CHATML, [{"role": "assistant", "tool_calls": "x"}], "must be a list"),
        (CHATML, [{"role": "assistant", "tool_calls": [{}]}], "with a 'function'"),
        (CHATML, [{"role": "assistant", "tool_calls": [{"function": {"arguments": "{"}}]}], "valid JSON"),
        (CHATML, [{"role": "assistant", "tool_calls": [{"function": {"arguments": "[" * 99999}}]}], "valid JSON"),
        (CHATML, [{"role": "assistant", "tool_calls": [{"function": {"arguments": "[1]"}}]}], "JSON object"),
    ],
)
def test_what_a_template_refuses_is_the_callers_fault(source: str, messages: list[Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        template(source).render(messages)
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    "name", ["messages", "tools", "add_generation_prompt", "bos_token", "pad_token", "range", "raise_exception", "self"]
)
def test_names_of_ours_cannot_be_overridden(name: str) -> None:
    with pytest.raises(InvalidRequest, match=name) as caught:
        template(CHATML).render(TALK, kwargs={name: 1})
    assert caught.value.param == "chat_template_kwargs"


def test_text_of_messages_is_never_compiled() -> None:
    prompt = template(CHATML).render([{"role": "user", "content": "{{ 7 * 7 }}{% raw %}"}])
    assert "{{ 7 * 7 }}{% raw %}" in prompt


def test_where_templates_are_found(tmp_path: Path, byte_level: Tokenizer) -> None:
    with pytest.raises(InvalidRequest, match="no chat template"):
        ChatTemplate.from_dir(tmp_path, byte_level).render(TALK)

    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": "config"}), encoding="utf-8")
    assert ChatTemplate.from_dir(tmp_path, byte_level).render(TALK) == "config"

    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "with {{ tools|length }}"}]
    config.write_text(json.dumps({"chat_template": named}), encoding="utf-8")
    both = ChatTemplate.from_dir(tmp_path, byte_level)
    assert (both.render(TALK), both.render(TALK, tools=[])) == ("plain", "plain")
    assert both.render(TALK, tools=[TOOL]) == "with 1"

    (tmp_path / "chat_template.jinja").write_text("file", encoding="utf-8")
    assert ChatTemplate.from_dir(tmp_path, byte_level).render(TALK) == "file"


def test_a_bad_template_is_one_line_at_start(tmp_path: Path, byte_level: Tokenizer) -> None:
    for source in ("{% if %}", "{{ 1 | nosuchfilter }}"):
        (tmp_path / "chat_template.jinja").write_text(source, encoding="utf-8")
        with pytest.raises(ValueError, match="'default' is not valid Jinja"):
            ChatTemplate.from_dir(tmp_path, byte_level)
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": [3]}', encoding="utf-8")
    with pytest.raises(ValueError, match="no template"):
        ChatTemplate.from_dir(tmp_path, byte_level)


def test_our_environment_needs_a_safe_jinja() -> None:
    assert tuple(map(int, jinja2.__version__.split(".")[:3])) >= (3, 1, 6)
