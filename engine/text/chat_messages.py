"""OpenAI's messages into the form that chat templates expect.

Knows the form of messages and of Jinja's syntax tree. Must not know rendering or HTTP.
"""

import json
from typing import Any

from jinja2 import nodes

from engine.api import InvalidRequest

# A message's reasoning, by the names that APIs give it; templates read the first, gpt-oss's the second.
_REASONING_NAMES = ("reasoning_content", "thinking", "reasoning")


def iterates_content(template: nodes.Template) -> bool:
    """Whether a template loops over a message's content, and so takes a list of parts as it is."""
    names = {"content"}
    for assignment in template.find_all(nodes.Assign):
        if isinstance(assignment.target, nodes.Name) and _is_content(assignment.node, names):
            names.add(assignment.target.name)
    return any(_is_content(loop.iter, names) for loop in template.find_all(nodes.For))


def _is_content(node: nodes.Node, names: set[str]) -> bool:
    if isinstance(node, nodes.Name):
        return node.name in names
    if isinstance(node, nodes.Getattr):
        return node.attr == "content"
    return isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const) and node.arg.value == "content"


def prepare_message(message: dict[str, Any], *, keep_parts: bool) -> dict[str, Any]:
    """A copy of `message` for the template. Raises InvalidRequest for "messages".

    Absent values: keys that hold None are dropped, since many templates print them. Content: a list of text parts
    becomes one string unless `keep_parts`. Tool calls: arguments that are a JSON text become the object that it spells.
    Reasoning: has all names that templates read, whichever the client gave.
    """
    if not isinstance(message, dict):
        raise _invalid("Each of 'messages' must be an object.")
    prepared = {key: value for key, value in message.items() if value is not None}
    content = prepared.get("content")
    if isinstance(content, list):
        texts = [_part_text(part) for part in content]
        prepared["content"] = [{"type": "text", "text": text} for text in texts] if keep_parts else "".join(texts)
    reasoning = next((prepared[name] for name in _REASONING_NAMES if name in prepared), None)
    if reasoning is not None:
        prepared = {"thinking": reasoning, **prepared, "reasoning_content": reasoning}
    calls = prepared.get("tool_calls")
    if calls is not None:
        if not isinstance(calls, list):
            raise _invalid("'tool_calls' of a message must be a list.")
        prepared["tool_calls"] = [_prepare_call(call) for call in calls]
    return prepared


def _part_text(part: object) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and part.get("type", "text") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    raise _invalid("This model takes text only: each part of a message's content must be {'type': 'text', 'text': …}.")


def _prepare_call(call: object) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict):
        raise _invalid("Each of a message's 'tool_calls' must be an object with a 'function'.")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            # An empty text is how some clients write a call without arguments.
            arguments = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError) as error:
            raise _invalid("'arguments' of a tool call must be valid JSON.") from error
        if not isinstance(arguments, dict):
            raise _invalid("'arguments' of a tool call must spell a JSON object.")
        function = {**function, "arguments": arguments}
    return {**call, "function": function}


def _invalid(message: str) -> InvalidRequest:
    return InvalidRequest(message, "messages")
