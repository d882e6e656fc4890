"""Tool calling: JSON schemas of known and of invented functions, questions that need one, calls and results.

Invented functions (any words for name, subject and arguments) are the majority: the model has to read the schema, not
to remember it.
"""

from dataclasses import dataclass
from typing import Any

from models.training.chat import tool_call_text
from models.training.draws import Draw
from models.training.phrasing import is_heldout_template, polite, template
from models.training.structured import to_json
from models.training.wordings import load_json, wordings

Schema = dict[str, Any]


@dataclass(frozen=True)
class Tool:
    """A function on offer.

    noun: what it returns, in words ("" for most known ones). known: its entry in data/tools.json, or None if invented.
    keys: argument keys by their role there ("v", "u"; an invented tool's optional second key is "u").
    """

    name: str
    noun: str
    schema: Schema
    keys: dict[str, str]
    known: dict[str, Any] | None


@dataclass(frozen=True)
class Call:
    """A question and the call that answers it."""

    question: str
    tool: Tool
    arguments: dict[str, Any]

    @property
    def text(self) -> str:
        """The call as the assistant writes it."""
        return tool_call_text(self.tool.name, self.arguments)

    @property
    def thought(self) -> str:
        """What the assistant thinks before the call."""
        return f"I need the tool {self.tool.name} for this."


def _schema(draw: Draw, name: str, description: str, properties: Schema, required: list[str]) -> Schema:
    """One entry of "tools" as clients send it; keys and their order vary as they do between clients."""
    parameters: Schema = {"type": "object", "properties": properties}
    if required and draw.chance(0.85):
        parameters["required"] = required
    if draw.chance(0.06):
        parameters["additionalProperties"] = False
    function: Schema = {"name": name}
    if description:
        function["description"] = description
    function["parameters"] = parameters
    if draw.chance(0.04):
        function["strict"] = True
    return {"type": "function", "function": function}


def _identifier(draw: Draw) -> str:
    return draw.common_word() if draw.chance(0.7) else draw.syllables(draw.pick([1, 2, 2, 3]))


def invented_tool(draw: Draw) -> Tool:
    """A function that looks something up, with one argument and sometimes an optional second one."""
    words = load_json("tool_wordings.json")
    noun = _identifier(draw)
    if draw.chance(0.25):
        noun += " " + _identifier(draw)
    key = draw.pick(words["keys"]) if draw.chance(0.5) else _identifier(draw)
    style = draw.rng.random()
    if style < 0.6:
        name = draw.pick(words["verbs"]) + "_" + noun.replace(" ", "_")
    elif style < 0.7:
        name = draw.pick(words["verbs"]) + "".join(word.capitalize() for word in noun.split())
    elif style < 0.85:
        name = noun.replace(" ", "_")
    else:
        name = _identifier(draw) + draw.pick(["_", "", "-"]) + _identifier(draw)
    properties: Schema = {key: {"type": "string"}}
    if draw.chance(0.35):
        properties[key]["description"] = draw.pick(words["key_descriptions"]).format(key)
    keys = {"v": key}
    if draw.chance(0.2):
        keys["u"] = draw.pick([extra for extra in words["extra_keys"] if extra != key])
        properties[keys["u"]] = {"type": "string"}
    description = draw.pick(words["descriptions"]).replace("{n}", noun).replace("{a}", key)
    if style < 0.85 and draw.chance(0.06):
        description = ""  # the name says it all
    return Tool(name, noun, _schema(draw, name, description, properties, [key]), keys, None)


def known_tool(draw: Draw) -> Tool:
    """A function that people often show to models: the weather, a timer, an email ..."""
    entry = draw.pick(load_json("tools.json"))
    keys = {role: draw.pick(argument["aliases"]) for role, argument in entry["args"].items()}
    properties: Schema = {}
    required = []
    for role, argument in entry["args"].items():
        if argument.get("optional"):
            if draw.chance(0.6):
                del keys[role]
                continue
        else:
            required.append(keys[role])
        properties[keys[role]] = {"type": argument["type"]}
        if "enum" in argument:
            properties[keys[role]]["enum"] = argument["enum"]
        if draw.chance(0.3):
            template = draw.pick(load_json("tool_wordings.json")["key_descriptions"])
            properties[keys[role]]["description"] = template.format(keys[role])
    name = draw.pick(entry["names"])
    noun = "weather" if "weather" in entry["names"] else ""
    schema = _schema(draw, name, draw.pick(entry["descriptions"]), properties, required)
    return Tool(name, noun, schema, keys, entry)


def toolset(draw: Draw, count: int, known_share: float = 0.4) -> list[Tool]:
    """`count` functions that differ in what they are for."""
    tools: list[Tool] = []
    while len(tools) < count:
        tool = known_tool(draw) if draw.chance(known_share) else invented_tool(draw)
        same = [other for other in tools if other.name == tool.name or (other.noun == tool.noun and tool.noun)]
        if not same and not any(tool.known and tool.known is other.known for other in tools):
            tools.append(tool)
    return tools


def _value(draw: Draw, kind: str) -> Any:
    words = load_json("tool_wordings.json")
    lists = {
        "temperature_unit": ["celsius", "fahrenheit"],
        "currency": words["currencies"],
        "language": words["languages"],
    }
    lists |= {"room": words["rooms"], "day": words["days"]}
    if kind in lists:
        return draw.pick(lists[kind])
    if kind == "place":
        return draw.place()
    if kind == "name":
        return draw.name()
    if kind == "phrase":
        return draw.plain_phrase((1, 2, 2, 3, 4))
    if kind == "symbol":
        return draw.syllables(1).upper()[: draw.pick([3, 4])] if draw.chance(0.6) else draw.name()
    if kind == "word_title":
        return " ".join(draw.plain_word().capitalize() for _ in range(draw.pick([1, 1, 2, 3])))
    return draw.rng.randint(1, 12) if kind == "small_int" else draw.rng.randint(0, draw.pick([20, 99, 999]))


def _ask_known(draw: Draw, tool: Tool) -> Call:
    entry = tool.known
    assert entry is not None
    asks = entry["heldout"] if draw.split == "heldout" else entry["asks"]
    optional = {role for role, argument in entry["args"].items() if argument.get("optional")}
    ask = draw.pick([ask for ask in asks if "{u}" not in ask or "u" in tool.keys])
    if draw.training and draw.chance(0.4):
        varied = polite(draw, ask)
        ask = ask if is_heldout_template(varied) else varied
    values = {role: _value(draw, entry["args"][role]["kind"]) for role in tool.keys}
    used = {role: value for role, value in values.items() if f"{{{role}}}" in ask or role not in optional}
    return Call(ask.format(**values), tool, {tool.keys[role]: value for role, value in used.items()})


def ask(draw: Draw, tool: Tool) -> Call:
    """A question that needs `tool`."""
    if tool.known is not None:
        return _ask_known(draw, tool)
    kind = draw.rng.random()
    value = draw.place() if kind < 0.5 else draw.name() if kind < 0.7 else draw.plain_phrase((1, 1, 2, 3))
    question = template(draw, "ask_value").format(noun=tool.noun, v=value)
    arguments = {tool.keys["v"]: value}
    if "u" in tool.keys and draw.chance(0.5):
        extra = draw.plain_word()
        end = question[-1] if question[-1] in "?." else ""
        form = draw.pick(wordings("with_extra", "train"))
        question = question.rstrip("?.") + form.format(k=tool.keys["u"], x=extra) + end
        arguments[tool.keys["u"]] = extra
    if draw.training and draw.chance(0.15):
        lowered = question.lower().replace(value.lower(), value)
        question = draw.pick([lowered, question.rstrip("?."), "Please: " + question, "Hi! " + question])
    return Call(question, tool, arguments)


def result(draw: Draw, call: Call) -> tuple[str, str]:
    """What the tool returns, and what the model says of it: every key with its value, underscores as blanks."""
    style = draw.rng.random()
    if style < 0.06:
        message = draw.plain_phrase((2, 3, 4))
        return to_json({"error": message}), f"The tool failed: {message}."
    if style < 0.2:
        text = draw.plain_phrase((1, 2, 3)) if draw.chance(0.6) else str(draw.rng.randint(0, 9999))
        return text, f"The answer is {text}."
    values: dict[str, Any] = {}
    if call.tool.noun == "weather":
        values["temperature"] = draw.rng.randint(-10, 40)
        values[draw.pick(["condition", "condition", "sky", "weather"])] = draw.pick(wordings("conditions", "train"))
    else:
        first = draw.pick(["result", "value", "status", "answer"])
        if call.tool.noun and draw.chance(0.6):
            first = call.tool.noun.replace(" ", "_")
        values[first] = _result_value(draw)
    if draw.chance(0.3):
        extra = _identifier(draw) + ("_" + _identifier(draw) if draw.chance(0.25) else "")
        values.setdefault(extra, _result_value(draw))
    said = [f"the {key.replace('_', ' ')} is {value}" for key, value in values.items()]
    joined = said[0] if len(said) == 1 else ", ".join(said[:-1]) + " and " + said[-1]
    return to_json(values), joined[0].upper() + joined[1:] + "."


def _result_value(draw: Draw) -> int | str:
    return draw.rng.randint(-99, 9999) if draw.chance(0.5) else draw.plain_phrase((1, 1, 2))
