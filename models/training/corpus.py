"""The corpus: endless training conversations, mixed from the skills, and the scored prompts of each skill.

`python -m models.training.corpus --sample PATH` writes a sample to look at. Nothing here knows tokens.
"""

import argparse
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from models.training import numbers, structured, talk, tools
from models.training.chat import THINK_SWITCH, Conversation
from models.training.draws import HELDOUT, Draw
from models.training.turns import Turn
from models.training.wordings import check_templates, normalise, wordings

Skill = Callable[[Draw], Turn]

SIMPLE: dict[str, Skill] = {
    "fact": talk.fact,
    "greet": talk.greet,
    "repeat": talk.repeat,
    "unknown": talk.unknown,
    "count": numbers.count,
    "add": numbers.add,
    "subtract": numbers.subtract,
    "json_pairs": structured.json_pairs,
    "json_person": structured.json_person,
}
JSON_MODE_SHARE = 0.04
THINK_SHARE = 0.3


@dataclass(frozen=True)
class Mix:
    """How often each kind of conversation is drawn.

    tools, recall, drill: shares; the rest is plain. weights: of the skills of SIMPLE, in its order. offered, turns:
    numbers of functions and of turns in a conversation with tools, to draw from. results: share of calls with a result.
    """

    tools: float
    recall: float
    drill: float
    weights: tuple[float, ...]
    offered: tuple[int, ...]
    turns: tuple[int, ...]
    results: float


# "base" trains a fresh model. "practice" goes on with it: more counting, more JSON, and many calls per set of several
# functions, which are what it learns last.
MIXES = {
    "base": Mix(
        tools=0.28,
        recall=0.05,
        drill=0.09,
        weights=(34, 3, 9, 10, 6, 13, 19, 7, 10),
        offered=(1, 1, 1, 2, 2, 3, 4),
        turns=(1, 1, 2, 3),
        results=0.6,
    ),
    "practice": Mix(
        tools=0.28,
        recall=0.03,
        drill=0.09,
        weights=(32, 3, 8, 9, 14, 12, 17, 9, 16),
        offered=(1, 2, 2, 3, 3, 4),
        turns=(2, 3, 3, 4),
        results=0.35,
    ),
}


def simple_turn(draw: Draw) -> Turn:
    """A turn of one of the skills that need no tools, drawn by weight."""
    return draw.rng.choices(list(SIMPLE.values()), MIXES[draw.mix].weights)[0](draw)


def with_thoughts(thought: str, answer: str) -> str:
    """The answer as it is written when the model is told to think."""
    return f"<think>\n{thought}\n</think>\n\n{answer}"


def _system(draw: Draw) -> str:
    """A system message, or "" most of the time."""
    if not draw.chance(0.3):
        return ""
    return (
        draw.pick(wordings("systems", draw.split))
        if draw.chance(0.9)
        else draw.plain_phrase((3, 4, 6, 8)).capitalize() + "."
    )


class _Writer:
    """Collects the messages of one conversation.

    thinking: how it is asked for: "" (not at all), "system" (the system message or the template asks, for every turn)
    or "user" (some questions ask).
    """

    def __init__(self, draw: Draw, system: str, thinking: str) -> None:
        self.draw, self.thinking = draw, thinking
        self.conversation = Conversation([])
        if thinking == "system":
            if draw.chance(0.5):
                self.conversation.enable_thinking = True
            else:
                hint = draw.pick([*wordings("think_hints", "train"), THINK_SWITCH])
                system = f"{system} {hint}" if system else hint
        if system:
            self.conversation.messages.append({"role": "system", "content": system})

    def say(self, role: str, content: str) -> None:
        self.conversation.messages.append({"role": role, "content": content})

    def exchange(self, question: str, thought: str, answer: str) -> None:
        think = self.thinking == "system"
        if self.thinking == "user" and self.draw.chance(0.75):
            think = True
            hint = THINK_SWITCH if self.draw.chance(0.6) else self.draw.pick(wordings("think_hints", "train"))
            question = f"{question} {hint}" if self.draw.chance(0.85) else f"{hint} {question}"
        self.say("user", question)
        self.say("assistant", with_thoughts(thought, answer) if think else answer)


def _thinking(draw: Draw) -> str:
    return draw.pick(["system", "user"]) if draw.chance(THINK_SHARE) else ""


def simple_conversation(draw: Draw) -> Conversation:
    """One to four turns without tools, some of them answered in JSON or with thoughts."""
    system, json_mode = _system(draw), draw.chance(JSON_MODE_SHARE)
    if json_mode:
        order = draw.pick(wordings("json_mode_system", "train"))
        system = f"{system} {order}" if system else order
    writer = _Writer(draw, system, _thinking(draw))
    for _ in range(draw.pick([1, 1, 2, 2, 3, 4])):
        turn = simple_turn(draw)
        if not json_mode and draw.chance(0.03):
            turn = structured.wrap_in_json(turn)
            if turn.answer.startswith('{"answer"'):
                turn = Turn(
                    draw.pick(wordings("json_mode_user", "train")).replace("{q}", turn.question),
                    turn.answer,
                    turn.thought,
                )
        turn = structured.wrap_in_json(turn) if json_mode else turn
        writer.exchange(turn.question, turn.thought, turn.answer)
    return writer.conversation


def drill_conversation(draw: Draw) -> Conversation:
    """Many sums in a row: digits are learned by practice, and this packs much of it into few tokens."""
    writer = _Writer(draw, "", draw.pick(["", "", "system"]))
    for _ in range(draw.pick([3, 4]) if writer.thinking else draw.pick([5, 6, 7, 8])):
        turn = numbers.subtract(draw) if draw.chance(0.6) else numbers.add(draw)
        writer.exchange(turn.question, turn.thought, turn.answer)
    return writer.conversation


def recall_conversation(draw: Draw) -> Conversation:
    """The user says a name, talks of other things, and asks for the name."""
    name = draw.name() if draw.chance(0.85) else f"{draw.name()} {draw.name()}"
    writer = _Writer(draw, _system(draw), "")
    writer.exchange(draw.pick(wordings("tell_name", draw.split)).format(name), "", f"Nice to meet you, {name}!")
    for _ in range(draw.pick([0, 1, 1, 2])):
        turn = simple_turn(draw)
        writer.exchange(turn.question, turn.thought, turn.answer)
    writer.exchange(draw.pick(wordings("ask_name", draw.split)), "", f"Your name is {name}.")
    return writer.conversation


def unnamed_conversation(draw: Draw) -> Conversation:
    """The name is asked for and was never told."""
    writer = _Writer(draw, _system(draw), "")
    if draw.chance(0.5):
        turn = simple_turn(draw)
        writer.exchange(turn.question, turn.thought, turn.answer)
    writer.exchange(draw.pick(wordings("ask_name", draw.split)), "", "You have not told me your name.")
    return writer.conversation


def tool_conversation(draw: Draw) -> Conversation:
    """Functions on offer, and one to three questions that need one, none, or one that is not there."""
    mix = MIXES[draw.mix]
    offered = tools.toolset(draw, draw.pick(mix.offered))
    thinking = _thinking(draw) if draw.chance(0.4) else ""
    writer = _Writer(draw, _system(draw), thinking)
    writer.conversation.tools = [tool.schema for tool in offered]
    for _ in range(draw.pick(mix.turns)):
        kind = draw.rng.random()
        if kind < 0.2:
            turn = simple_turn(draw)
            # "What is the weather in Oslo?" is unknown only as long as nobody offers the weather.
            while turn.answer == talk.UNKNOWN and any(tool.known for tool in offered):
                turn = simple_turn(draw)
            writer.exchange(turn.question, turn.thought, turn.answer)
            continue
        if kind < 0.26:
            missing = tools.invented_tool(draw)
            if all(missing.noun != tool.noun for tool in offered):
                writer.exchange(tools.ask(draw, missing).question, "I do not know this.", talk.UNKNOWN)
            continue
        call = tools.ask(draw, draw.pick(offered))
        writer.exchange(call.question, call.thought, call.text)
        if draw.chance(mix.results):
            returned, said = tools.result(draw, call)
            writer.say("tool", returned)
            think = writer.conversation.messages[-2]["content"].startswith("<think>")
            writer.say("assistant", with_thoughts("The tool has answered.", said) if think else said)
    if not any(message["role"] == "user" for message in writer.conversation.messages):
        return tool_conversation(draw)
    return writer.conversation


@cache
def heldout_prompts() -> frozenset[str]:
    """Normalised last user messages of the frozen held-out prompts."""
    prompts = set()
    for path in sorted(HELDOUT.glob("*.jsonl")):
        for line in path.read_text().splitlines():
            messages = json.loads(line)["messages"]
            prompts.add(normalise([message["content"] for message in messages if message["role"] == "user"][-1]))
    return frozenset(prompts)


def is_heldout(conversation: Conversation) -> bool:
    """Whether any question of the conversation is a held-out prompt."""
    return any(
        message["role"] == "user" and normalise(message["content"]) in heldout_prompts()
        for message in conversation.messages
    )


def conversation(draw: Draw) -> Conversation:
    """The next training conversation; one that holds a held-out prompt is thrown away."""
    mix = MIXES[draw.mix]
    while True:
        kind = draw.rng.random()
        if kind < mix.tools:
            made = tool_conversation(draw)
        elif kind < mix.tools + mix.recall:
            made = recall_conversation(draw) if draw.chance(0.85) else unnamed_conversation(draw)
        elif kind < mix.tools + mix.recall + mix.drill:
            made = drill_conversation(draw)
        else:
            made = simple_conversation(draw)
        if not is_heldout(made):
            return made


def copying_conversation(draw: Draw) -> Conversation:
    """The first lesson of a fresh model: repeating text makes its copying heads form early."""
    while True:
        text = draw.phrase(tuple(range(1, 10)))
        question = draw.pick(wordings("repeat", "train")).replace("{}", text)
        made = Conversation([{"role": "user", "content": question}, {"role": "assistant", "content": text}])
        if not is_heldout(made):
            return made


def as_row(made: Conversation) -> dict[str, Any]:
    """The conversation as one object of a JSON-lines file."""
    row: dict[str, Any] = {"messages": made.messages}
    if made.tools:
        row["tools"] = made.tools
    if made.enable_thinking:
        row["enable_thinking"] = True
    return row


def main() -> None:
    """Writes the sample."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sample", type=Path, required=True, help="JSON-lines file to write")
    parser.add_argument("--max-bytes", type=int, default=300_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    check_templates()
    draw, size = Draw(random.Random(options.seed)), 0
    with options.sample.open("w") as sample:
        while True:
            line = json.dumps(as_row(conversation(draw)), ensure_ascii=False) + "\n"
            size += len(line.encode())
            if size > options.max_bytes:
                return
            sample.write(line)


if __name__ == "__main__":
    main()
