"""The body of /v1/chat/completions.

Knows OpenAI's fields and what a chat template wants to see. Must not know tokens or responses.
"""

from typing import Any, Literal

import msgspec

from container.schema.fields import NOTHING, FieldRule, RawBody, read
from container.schema.limits import PromptLimits, num_bytes
from container.schema.sampling import SHARED_NEUTRAL, WITHOUT_EFFECT, SamplingFields
from engine.api import InvalidRequest, ModelInfo, SamplingParams

# Each is encoded as JSON again by the template, in one go and with the interpreter's lock held.
_MAX_OBJECT_BYTES = 2**21
# Templates build texts by adding to them, message by message and tool by tool: quadratic work.
_MAX_MESSAGES = 10_000
_MAX_TOOLS = 1024

RULE = FieldRule(
    neutral={
        **SHARED_NEUTRAL,
        "add_special_tokens": (False,),
        "best_of": (1,),
        "echo": (False,),
        "parallel_tool_calls": (True,),
        "functions": ([],),
        "function_call": ("none", "auto"),
        "modalities": (["text"],),
        "audio": NOTHING,
        "prediction": NOTHING,
        "web_search_options": NOTHING,
        "moderation": NOTHING,
        "reasoning_effort": NOTHING,
        "verbosity": ("medium",),
        "include_reasoning": (True,),
        "continue_final_message": (False,),
        "chat_template": NOTHING,
        "documents": ([],),
    },
    without_effect=WITHOUT_EFFECT,
    max_bytes={"messages": None, "tools": _MAX_OBJECT_BYTES, "chat_template_kwargs": _MAX_OBJECT_BYTES},
)


class TextPart(msgspec.Struct, tag_field="type", tag="text", forbid_unknown_fields=True):
    """A part of a message's content; only text can be read here."""

    text: str


class CalledFunction(msgspec.Struct, forbid_unknown_fields=True):
    """The function of an assistant's earlier tool call."""

    name: str
    arguments: str | dict[str, Any] = ""


class ToolCall(msgspec.Struct, forbid_unknown_fields=True):
    """A tool call that the assistant made earlier in the conversation."""

    function: CalledFunction
    id: str | None = None
    type: Literal["function"] = "function"
    # Clients that glue streamed chunks together send it back.
    index: int | None = None


class Message(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One message of the conversation, with the fields that clients send back from an earlier answer."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: list[None] | None = None

    def to_template(self, path: str) -> dict[str, Any]:
        """The message for ChatTemplate, which drops what is None. Raises InvalidRequest; `path` is its place."""
        if self.content is None and not (self.role == "assistant" and self.tool_calls):
            raise InvalidRequest(f"'{path}.content' is missing.", f"{path}.content")
        shown: dict[str, Any] = {
            "role": "system" if self.role == "developer" else self.role,
            "content": msgspec.to_builtins(self.content),
            "name": self.name,
            "tool_call_id": self.tool_call_id,
            "reasoning_content": self.reasoning if self.reasoning_content is None else self.reasoning_content,
        }
        if self.tool_calls:
            if self.role != "assistant":
                raise InvalidRequest(f"'{path}.tool_calls' belongs to an assistant's message.", f"{path}.tool_calls")
            for i, call in enumerate(self.tool_calls):
                if len(call.function.arguments) > _MAX_OBJECT_BYTES:
                    param = f"{path}.tool_calls[{i}].function.arguments"
                    raise InvalidRequest(f"'{param}' is longer than {_MAX_OBJECT_BYTES} characters.", param)
            shown["tool_calls"] = [msgspec.to_builtins(call) for call in self.tool_calls]
        return shown


class ToolFunction(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A function that the model may call."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct, forbid_unknown_fields=True):
    """A tool as OpenAI describes it; a function is the only kind."""

    function: ToolFunction
    type: Literal["function"] = "function"


class ChatRequest(SamplingFields, kw_only=True):
    """The fields of /v1/chat/completions that take effect."""

    messages: list[Message]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    tools: list[Tool] = msgspec.field(default_factory=list)
    tool_choice: str | dict[str, Any] = "auto"
    chat_template_kwargs: dict[str, Any] = msgspec.field(default_factory=dict)
    add_generation_prompt: bool = True
    logprobs: bool = False
    top_logprobs: int = 0

    def params(self, info: ModelInfo) -> SamplingParams:
        """The engine's parameters; without a limit of its own the answer may fill the context."""
        limit = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        return self.to_params(info, limit, self.top_logprobs if self.logprobs else None)

    def names(self) -> dict[str, str]:
        """The engine's names for what this request calls otherwise."""
        limit = "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"
        return {"prompt": "messages", "max_tokens": limit, "logprobs": "top_logprobs"}

    def template_messages(self) -> list[dict[str, Any]]:
        """The conversation as the chat template reads it."""
        return [message.to_template(f"messages[{i}]") for i, message in enumerate(self.messages)]

    def template_tools(self) -> list[dict[str, Any]] | None:
        """The tools that the template may offer to the model; None for none."""
        if self.tool_choice == "none" or not self.tools:
            return None
        return [{"type": tool.type, "function": _without_nulls(tool.function)} for tool in self.tools]


def read_chat(raw: RawBody, limits: PromptLimits) -> ChatRequest:
    """The request of a body. Raises InvalidRequest or ContextLengthExceeded, naming the field."""
    if "messages" in raw:
        limits.check_bytes(num_bytes(raw["messages"]), "messages")
    request = read(raw, ChatRequest, RULE)
    if not request.messages:
        raise InvalidRequest("'messages' must have at least one message.", "messages")
    for name, count, most in (
        ("messages", len(request.messages), _MAX_MESSAGES),
        ("tools", len(request.tools), _MAX_TOOLS),
    ):
        if count > most:
            raise InvalidRequest(f"'{name}' has {count} entries; at most {most} are taken.", name)
    request.check()
    if request.top_logprobs and not request.logprobs:
        raise InvalidRequest("'top_logprobs' needs 'logprobs': true.", "top_logprobs")
    if request.tool_choice not in ("auto", "none"):
        raise InvalidRequest('\'tool_choice\' can be "auto" or "none" here.', "tool_choice")
    for i, tool in enumerate(request.tools):
        if tool.function.strict:
            path = f"tools[{i}].function.strict"
            raise InvalidRequest(f"'{path}' is not supported here; leave it out or false.", path)
    return request


def _without_nulls(struct: msgspec.Struct) -> dict[str, Any]:
    values: dict[str, Any] = msgspec.to_builtins(struct)
    return {name: value for name, value in values.items() if value is not None and name != "strict"}
