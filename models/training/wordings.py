"""The wordings of questions, from data/ and heldout/, and the check that keeps the held-out ones out of training.

Knows files and text, not skills.
"""

import json
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from models.training.draws import DATA, HELDOUT, Split


@dataclass
class Fact:
    """One thing the model knows. The lists are described at the top of data/facts.txt."""

    name: str
    answer: str = ""
    topic: str = ""
    lists: dict[str, list[str]] = field(default_factory=dict)


def normalise(text: str) -> str:
    """Lower-case words of `text` with single blanks: what two wordings must differ in to count as different."""
    return " ".join(re.findall(r"[a-z0-9_/]+|[{}+\-=]", text.lower()))


def read_facts(path: Path) -> list[Fact]:
    """Facts in the syntax that data/facts.txt describes. Raises ValueError on a line that is not of it."""
    facts: list[Fact] = []
    for line in path.read_text().splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        if match := re.fullmatch(r"\[(\w+)\]", line):
            facts.append(Fact(match[1]))
            continue
        key, colon, value = line.partition(": ")
        if not colon or not facts:
            raise ValueError(f"{path.name}: not a fact: {line!r}")
        if key in ("answer", "topic"):
            setattr(facts[-1], key, value)
        else:
            facts[-1].lists[key] = [wording.strip() for wording in value.split(" | ")]
    return facts


@cache
def load_facts() -> list[Fact]:
    """All facts, with their held-out wordings under the key "heldout"."""
    facts = read_facts(DATA / "facts.txt")
    held = {fact.name: fact.lists["q"] for fact in read_facts(HELDOUT / "facts.txt")}
    if held.keys() != {fact.name for fact in facts}:
        raise ValueError("data/facts.txt and heldout/facts.txt name different facts")
    for fact in facts:
        fact.lists["heldout"] = held[fact.name]
    return facts


@cache
def load_json(name: str) -> Any:
    """A JSON file of data/, or of heldout/ when the name starts with "heldout/"."""
    return json.loads((DATA.parent / name if name.startswith("heldout/") else DATA / name).read_text())


def wordings(key: str, split: Split) -> list[str]:
    """The wordings called `key` for a split; where a split has none of its own, the training ones serve."""
    train: dict[str, list[str]] = load_json("wordings.json") | load_json("tool_wordings.json")
    if split == "heldout":
        held: dict[str, list[str]] = load_json("heldout/wordings.json")
        return held.get(key, train[key])
    if split == "dev":
        return train.get(f"{key}_dev", train[key])
    return train[key]


@cache
def heldout_fact_wordings() -> frozenset[str]:
    """Normalised held-out wordings of all facts, with a blank at both ends."""
    return frozenset(f" {normalise(wording)} " for fact in load_facts() for wording in fact.lists["heldout"])


def contains_heldout_fact(text: str) -> bool:
    """Whether a held-out wording of a fact occurs in `text`, alone or inside a longer sentence."""
    padded = f" {normalise(text)} "
    return any(wording in padded for wording in heldout_fact_wordings())


def check_templates() -> None:
    """Raises ValueError when a held-out template is also a training or dev template. Run before every training run."""
    train: dict[str, list[str]] = load_json("wordings.json") | load_json("tool_wordings.json")
    held: dict[str, list[str]] = load_json("heldout/wordings.json")
    # Greetings are combined of three parts: their combinations are checked prompt by prompt instead.
    shared = {"greet_words", "greet_whom", "greet_tail"}
    for key, templates in held.items():
        seen = {normalise(template) for name in (key, f"{key}_dev") for template in train.get(name, [])}
        if key not in shared and (both := {normalise(template) for template in templates} & seen):
            raise ValueError(f"held-out wordings of {key!r} are in training too: {sorted(both)}")
    for tool in load_json("tools.json"):
        if both := {normalise(ask) for ask in tool["asks"]} & {normalise(ask) for ask in tool["heldout"]}:
            raise ValueError(f"held-out wordings of {tool['names'][0]} are in training too: {sorted(both)}")
