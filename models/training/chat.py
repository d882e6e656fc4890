"""Conversations as text: what chat_template.jinja renders, in pieces that say which of them the model is trained on.

export.py checks that the two renderings agree. Knows the ChatML layout; knows no skill and no tokenizer.
"""

import json
from dataclasses import dataclass, field
from typing import Any

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# Single tokens, but ordinary ones: a decoder that skips special tokens must still print them.
MARKUP_TOKENS = [
    mark for name in ("think", "tool_call", "tool_response", "tools") for mark in (f"<{name}>", f"</{name}>")
]

TOOLS_HEAD = "# Tools\n\nYou may call these functions:\n<tools>\n"
TOOLS_TAIL = (
    "</tools>\n\nTo call one, answer with\n<tool_call>\n"
    '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
)
THINK_SWITCH = "/think"


@dataclass
class Conversation:
    """Messages in the OpenAI form, with the tools offered.

    untrained: indices of assistant messages whose text is given and not learned (and not scored).
    """

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] = field(default_factory=list)
    enable_thinking: bool = False
    untrained: set[int] = field(default_factory=set)


def tool_call_text(name: str, arguments: dict[str, Any]) -> str:
    """What the assistant writes to call a function."""
    return "<tool_call>\n" + json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False) + "\n</tool_call>"


def render(conversation: Conversation) -> list[tuple[str, bool]]:
    """The conversation as (text, trained) pieces; only answers and the <|im_end|> after them are trained."""
    messages = conversation.messages
    has_system = bool(messages) and messages[0]["role"] == "system"
    blocks = [messages[0]["content"]] if has_system else []
    if conversation.tools:
        listed = "".join(json.dumps(tool, ensure_ascii=False) + "\n" for tool in conversation.tools)
        blocks.append(TOOLS_HEAD + listed + TOOLS_TAIL)
    if conversation.enable_thinking:
        blocks.append(THINK_SWITCH)
    pieces = [("<|im_start|>system\n" + "\n\n".join(blocks) + "<|im_end|>\n", False)] if blocks else []
    for index, message in enumerate(messages):
        role, content = message["role"], message["content"]
        if role == "system":
            continue
        if role == "tool":
            pieces.append((f"<|im_start|>user\n<tool_response>\n{content}\n</tool_response><|im_end|>\n", False))
        elif role == "assistant" and index not in conversation.untrained:
            pieces += [("<|im_start|>assistant\n", False), (f"{content}<|im_end|>", True), ("\n", False)]
        else:
            pieces.append((f"<|im_start|>{role}\n{content}<|im_end|>\n", False))
    return pieces
