"""A conversation to the one string that the model was trained on, by the model's own Jinja template.

Knows Jinja and the names that Hugging Face templates expect. Must not know HTTP or token ids.

The template is the model's, the messages are a client's: they reach the template as plain data and are never compiled.
The sandbox keeps a template from Python's internals, from changing what it is given, and from ranges over 100,000.
"""

import datetime
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from engine.api import InvalidRequest
from engine.text.chat_messages import iterates_content, prepare_message
from engine.text.model_files import read_json_object
from engine.text.tokenizer import Tokenizer

_MAX_REASON_CHARS = 500
# What Python code in a template can raise over a client's data, besides Jinja's own errors.
_RENDER_ERRORS = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
# Ours in every template, or arguments of transformers' call that would silently do nothing here.
_RESERVED = frozenset(
    {
        *("messages", "tools", "add_generation_prompt", "continue_final_message", "chat_template", "tokenize"),
        *("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"),
        *("self", "loop", "caller", "varargs", "kwargs"),
    }
)


class ChatTemplate:
    """A model's chat templates: "default" and, for some models, "tool_use" for conversations with tools."""

    def __init__(self, sources: Mapping[str, str], special_tokens: Mapping[str, str]) -> None:
        """`sources`: Jinja by name; empty where the model has none. Raises ValueError when one is not valid Jinja."""
        self._environment = _environment()
        self._special_tokens = dict(special_tokens)
        self._reserved = _RESERVED | self._environment.globals.keys() | self._special_tokens.keys()
        self._templates: dict[str, jinja2.Template] = {}
        self._takes_parts: dict[str, bool] = {}
        for name, source in sources.items():
            try:
                self._templates[name] = self._environment.from_string(source)
                self._takes_parts[name] = iterates_content(self._environment.parse(source))
            except jinja2.TemplateError as error:
                raise ValueError(f"the model's chat template {name!r} is not valid Jinja: {error}") from error

    @classmethod
    def from_dir(cls, path: str | Path, tokenizer: Tokenizer) -> "ChatTemplate":
        """The templates of a model directory: chat_template.jinja, else tokenizer_config.json's chat_template.

        A model without one loads, and refuses every chat. Raises ValueError when a file or a template is bad.
        """
        return cls(_read_sources(Path(path)), tokenizer.special_tokens)

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        kwargs: dict[str, object] | None = None,
    ) -> str:
        """The prompt of a conversation, to be encoded without special tokens: the template writes them itself.

        messages: OpenAI's form, text only. tools: OpenAI's function definitions. kwargs: further variables for the
        template, such as enable_thinking; one that it does not read has no effect.

        Raises InvalidRequest for "messages" when they have a wrong form or the template refuses them, and for
        "chat_template_kwargs" when one is a name of ours.
        """
        name = "tool_use" if tools and "tool_use" in self._templates else "default"
        template = self._templates.get(name)
        if template is None:
            raise InvalidRequest("This model has no chat template; use completions with a prompt instead.", "messages")
        if not messages:
            raise InvalidRequest("'messages' must hold at least one message.", "messages")
        extra = kwargs or {}
        taken = sorted(self._reserved & extra.keys())
        if taken:
            raise InvalidRequest(f"'chat_template_kwargs' must not set {taken[0]!r}.", "chat_template_kwargs")
        variables = {
            **self._special_tokens,
            **extra,
            "messages": [prepare_message(message, keep_parts=self._takes_parts[name]) for message in messages],
            "tools": tools or None,
            "documents": extra.get("documents"),
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return template.render(variables)
        except _RENDER_ERRORS as error:
            reason = str(error)[:_MAX_REASON_CHARS]
            raise InvalidRequest(f"The model's chat template refuses these messages: {reason}", "messages") from error


def _read_sources(path: Path) -> dict[str, str]:
    file = path / "chat_template.jinja"
    if file.is_file():
        try:
            return {"default": file.read_text(encoding="utf-8")}
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{file} cannot be read: {error}") from error
    value = read_json_object(path / "tokenizer_config.json").get("chat_template")
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": value}
    try:
        return {str(entry["name"]): str(entry["template"]) for entry in value}
    except (TypeError, LookupError) as error:
        raise ValueError(f"{path}/tokenizer_config.json has a chat_template that is no template") from error


class _GenerationTag(Extension):
    """`{% generation %}…{% endgeneration %}` marks the assistant's text for training; for serving it is just text."""

    tags = {"generation"}  # noqa: RUF012 - Jinja declares it so

    def parse(self, parser: Parser) -> nodes.Node:
        """The tag's body, with a scope of its own."""
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=lineno)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    # Text without end, for nobody.
    del environment.globals["lipsum"]
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML and sorts keys; models were trained on neither.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)
