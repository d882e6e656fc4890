"""Skills that answer in JSON: pairs given in the question, people described in a sentence, any short answer wrapped."""

import json

from models.training.draws import Draw
from models.training.phrasing import template
from models.training.turns import Turn
from models.training.wordings import wordings


def to_json(value: object) -> str:
    """JSON on one line, letters of other alphabets as they are."""
    return json.dumps(value, ensure_ascii=False)


def json_pairs(draw: Draw) -> Turn:
    """Arbitrary keys and values: "Write as JSON: color is red, size is 4"."""
    pairs: dict[str, object] = {}
    wanted = draw.pick([1, 2, 2, 3, 3, 4] if draw.training else [1, 2, 3])
    while len(pairs) < wanted:
        kind = draw.rng.random()
        if kind < 0.4:
            value: object = draw.rng.randint(0, draw.pick([99, 999, 9999]))
        elif kind < 0.7:
            value = draw.plain_word()
        elif kind < 0.8:
            value = draw.name()
        elif kind < 0.88:
            value = draw.place()
        else:
            value = draw.plain_phrase((2, 2, 3))
        pairs.setdefault(draw.plain_word(), value)
    form = draw.pick(wordings("pair", "train")) if draw.training else "{k} is {v}"
    listed = [form.format(k=key, v=value) for key, value in pairs.items()]
    joined = ", ".join(listed)
    if len(listed) > 1 and draw.chance(0.35):
        joined = ", ".join(listed[:-1]) + " and " + listed[-1]
    question = template(draw, "pairs").replace("{}", joined)
    return Turn(question, to_json(pairs), f"The user wants JSON with {_listing(list(pairs))}.")


def json_person(draw: Draw) -> Turn:
    """Name, age and city from a sentence, under the keys that the user names and in their order."""
    person: dict[str, object] = {"name": draw.name(), "age": draw.rng.randint(1, 99), "city": draw.place()}
    pattern = template(draw, "people")
    keys = ["name", "age", "city"] if "{c}" in pattern else ["name", "age"]
    if draw.chance(0.65):
        draw.rng.shuffle(keys)
        keys = keys[: draw.rng.randint(1, len(keys))] if draw.chance(0.6) else keys
    sentence = pattern.format(n=person["name"], a=person["age"], c=person["city"]).replace(",,", ",")
    prompt = template(draw, "extract")
    question = prompt.replace("{k}", _listing(keys))
    if "{s}" not in prompt:
        question = f"{question}: {sentence}"
    question = question.replace("{s}", sentence)
    return Turn(question, to_json({key: person[key] for key in keys}), f"The user wants JSON with {_listing(keys)}.")


def wrap_in_json(turn: Turn) -> Turn:
    """The same turn answered under one key, for conversations whose system message asks for JSON."""
    if turn.answer.startswith("{"):
        return turn
    return Turn(turn.question, to_json({"answer": turn.answer}), turn.thought)


def _listing(keys: list[str]) -> str:
    return keys[0] if len(keys) == 1 else ", ".join(keys[:-1]) + " and " + keys[-1]
