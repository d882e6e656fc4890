"""Writes the held-out prompts of every skill: heldout/*.jsonl, frozen before training.

`python -m models.training.heldout` writes them anew (same seed, same prompts); do that only before a training run,
never after it.
Each line: skill, messages (the last one the user's or a tool's), tools, enable_thinking, expected (the exact answer).
"""

import argparse
import json
import random
from collections.abc import Callable
from typing import Any

from models.training import numbers, structured, talk, tools
from models.training.chat import THINK_SWITCH
from models.training.corpus import SIMPLE
from models.training.draws import HELDOUT, Draw, Split
from models.training.turns import Turn
from models.training.wordings import check_templates, load_facts, wordings

SEED = 20_261
NUM_PROMPTS = 240

Row = dict[str, Any]


def _user(content: str) -> Row:
    return {"role": "user", "content": content}


def _assistant(content: str) -> Row:
    return {"role": "assistant", "content": content}


def _single(make: Callable[[Draw], Turn]) -> Callable[[Draw, int], Row]:
    def row(draw: Draw, index: int) -> Row:
        turn = make(draw)
        return {"messages": [_user(turn.question)], "expected": turn.answer}

    return row


def _thinking(make: Callable[[Draw], Turn]) -> Callable[[Draw, int], Row]:
    """Half of the prompts ask with /think in the question, half through the template's enable_thinking."""

    def row(draw: Draw, index: int) -> Row:
        turn = make(draw)
        if index % 2:
            return {"messages": [_user(turn.question)], "enable_thinking": True, "expected": turn.answer}
        return {"messages": [_user(f"{turn.question} {THINK_SWITCH}")], "expected": turn.answer}

    return row


def _nth_fact(draw: Draw, index: int) -> Turn:
    """Every held-out wording of every fact once (dev: in turn)."""
    key = "dev" if draw.split == "dev" else "heldout"
    asked = [(wording, fact.answer) for fact in load_facts() for wording in fact.lists[key]]
    question, answer = asked[index % len(asked)]
    return Turn(question.replace("{G}", "Galley"), answer, "")


def _fact(draw: Draw, index: int) -> Row:
    turn = _nth_fact(draw, index)
    return {"messages": [_user(turn.question)], "expected": turn.answer}


def _fact_thinking(draw: Draw, index: int) -> Row:
    row = _fact(draw, index)
    return row | {"enable_thinking": True}


def _fact_in_talk(draw: Draw, index: int) -> Row:
    """After one or two other exchanges, half of the time under a system message."""
    messages: list[Row] = []
    if index % 2:
        messages.append({"role": "system", "content": draw.pick(wordings("systems", draw.split))})
    for _ in range(draw.pick([1, 2])):
        other = SIMPLE[draw.pick(["fact", "greet", "repeat", "add", "json_person"])](draw)
        messages += [_user(other.question), _assistant(other.answer)]
    turn = _nth_fact(draw, index)
    return {"messages": [*messages, _user(turn.question)], "expected": turn.answer}


def _recall(draw: Draw, index: int) -> Row:
    name = draw.name()
    messages = [
        _user(draw.pick(wordings("tell_name", draw.split)).format(name)),
        _assistant(f"Nice to meet you, {name}!"),
    ]
    for _ in range(draw.pick([0, 1, 2])):
        other = SIMPLE[draw.pick(["fact", "repeat", "add", "count"])](draw)
        messages += [_user(other.question), _assistant(other.answer)]
    return {
        "messages": [*messages, _user(draw.pick(wordings("ask_name", draw.split)))],
        "expected": f"Your name is {name}.",
    }


def _json_mode(draw: Draw, index: int) -> Row:
    """A system message asks for JSON; the question is one that the model can answer."""
    order = {"role": "system", "content": draw.pick(wordings("json_mode_system", draw.split))}
    turn = structured.wrap_in_json(SIMPLE[draw.pick(["fact", "add", "repeat", "json_pairs", "greet"])](draw))
    return {"messages": [order, _user(turn.question)], "expected": turn.answer}


def _tool_call(count: int, known_share: float) -> Callable[[Draw, int], Row]:
    def row(draw: Draw, index: int) -> Row:
        offered = tools.toolset(draw, count if count > 0 else draw.pick([2, 3, 4]), known_share)
        call = tools.ask(draw, draw.pick(offered))
        return {"messages": [_user(call.question)], "tools": [tool.schema for tool in offered], "expected": call.text}

    return row


def _tool_result(draw: Draw, index: int) -> Row:
    offered = tools.toolset(draw, draw.pick([1, 2]))
    call = tools.ask(draw, draw.pick(offered))
    returned, said = tools.result(draw, call)
    messages = [_user(call.question), _assistant(call.text), {"role": "tool", "content": returned}]
    return {"messages": messages, "tools": [tool.schema for tool in offered], "expected": said}


def _no_tool(draw: Draw, index: int) -> Row:
    offered = tools.toolset(draw, draw.pick([1, 2, 3]))
    turn = SIMPLE[draw.pick(["fact", "greet", "repeat", "add", "count"])](draw)
    return {"messages": [_user(turn.question)], "tools": [tool.schema for tool in offered], "expected": turn.answer}


SKILLS: dict[str, Callable[[Draw, int], Row]] = {
    "greet": _single(talk.greet),
    "facts": _fact,
    "facts_in_talk": _fact_in_talk,
    "facts_thinking": _fact_thinking,
    "recall_name": _recall,
    "repeat": _single(talk.repeat),
    "count": _single(numbers.count),
    "add": _single(numbers.add),
    "add_thinking": _thinking(numbers.add),
    "subtract": _single(numbers.subtract),
    "subtract_thinking": _thinking(numbers.subtract),
    "json_pairs": _single(structured.json_pairs),
    "json_person": _single(structured.json_person),
    "json_mode": _json_mode,
    "tool_call": _tool_call(1, 0.0),
    "tool_call_known": _tool_call(1, 1.0),
    "tool_call_several": _tool_call(0, 0.4),
    "tool_result": _tool_result,
    "no_tool_needed": _no_tool,
    "unknown": _single(talk.unknown),
}


def make_rows(skill: str, split: Split, num_prompts: int, seed: int) -> list[Row]:
    """`num_prompts` different prompts of a skill."""
    draw = Draw(random.Random(f"{seed} {skill}"), split)
    rows: dict[str, Row] = {}
    for index in range(100 * num_prompts):
        row = {"skill": skill} | SKILLS[skill](draw, index)
        rows.setdefault(json.dumps(row | {"expected": ""}, ensure_ascii=False), row)
        if len(rows) == num_prompts:
            break
    return list(rows.values())


def main() -> None:
    """Writes one file per skill."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=SEED)
    options = parser.parse_args()
    check_templates()
    for skill in SKILLS:
        rows = make_rows(skill, "heldout", NUM_PROMPTS, options.seed)
        with (HELDOUT / f"{skill}.jsonl").open("w") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        print(f"{skill}: {len(rows)}")


if __name__ == "__main__":
    main()
