"""Templates of requests and how they vary: "Count from {a} to {b}." as "Could you count from {a} to {b} for me?".

Works on templates, before their places are filled, so that a held-out template is recognised and avoided.
"""

from functools import cache

from models.training.draws import Draw
from models.training.wordings import load_json, normalise, wordings


@cache
def _heldout_templates() -> frozenset[str]:
    held: dict[str, list[str]] = load_json("heldout/wordings.json")
    asks = [ask for tool in load_json("tools.json") for ask in tool["heldout"]]
    return frozenset(normalise(template) for templates in [*held.values(), asks] for template in templates)


def is_heldout_template(template: str) -> bool:
    """Whether the template is one of the held-out ones, whatever its case and punctuation."""
    return normalise(template) in _heldout_templates()


def polite(draw: Draw, request: str) -> str:
    """A request that begins with a verb, or a question, as part of a longer sentence; anything else as it is."""
    styles = load_json("request_templates.json")
    lead = ""
    if request.startswith("{s} "):
        lead, request = "{s} ", request[4:]
    first = request.split(" ")[0].rstrip(":")
    if first in styles["verbs"]:
        bare = request[:1].lower() + request[1:].rstrip(".!?")
        end = request[-1] if request[-1] not in ".!?" else ""
        form: str = draw.pick(styles["quoting"] if end in ('"', "}", "]") and ":" in request else styles["polite"])
        return lead + form.replace("[]", bare)
    if first in styles["question_words"]:
        asking: str = draw.pick(styles["asking"])
        return lead + asking.replace("[]", request[:1].lower() + request[1:])
    return lead + request


def template(draw: Draw, key: str) -> str:
    """A template called `key` of the draw's split; in training often varied, and never a held-out one."""
    if not draw.training:
        return draw.pick(wordings(key, draw.split))
    styles = load_json("request_templates.json")
    while True:
        chosen = draw.pick(wordings(key, "train"))
        if key in styles["composed"] and draw.chance(0.4):
            chosen = _composed(draw, styles["composed"][key])
        if draw.chance(0.35):
            chosen = polite(draw, chosen)
        if not is_heldout_template(chosen):
            return chosen


def _composed(draw: Draw, parts: list[list[str]]) -> str:
    """One alternative of each part, joined."""
    text = "".join(draw.pick(part) for part in parts)
    return text[:1].upper() + text[1:]
