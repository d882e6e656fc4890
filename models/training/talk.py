"""Skills of plain talk: facts, greetings, repeating text, and saying that something is unknown.

Training questions are varied freely (templates, prefixes, lower case, dropped words, typing errors): the variety of
wordings is what lets so small a model understand one that it has not seen. Held-out and dev questions come as they are
written.
"""

from models.training.draws import Draw
from models.training.phrasing import template
from models.training.turns import Turn
from models.training.wordings import contains_heldout_fact, load_facts, load_json, wordings

GREETING = "Hello! How can I help you?"
UNKNOWN = "Sorry, I am only a tiny model and I do not know that."


def vary(draw: Draw, question: str) -> str:
    """`question` as some user may type it."""
    styles = load_json("fact_templates.json")
    if draw.chance(0.25):
        question = _reword(draw, question, styles["synonyms"])
    if draw.chance(0.2):
        prefix = draw.pick(styles["prefix"])
        keeps_capital = prefix.rstrip()[-1] in ".!" or question.startswith(("I ", "SageMaker", "Galley"))
        question = prefix + (question if keeps_capital else question[:1].lower() + question[1:])
    if draw.chance(0.08):
        end = question[-1] if question[-1] in "?.!" else ""
        question = question.rstrip("?.!") + draw.pick(styles["suffix"]) + end
    if draw.chance(0.12):
        question = _drop_words(draw, question, styles["fillers"])
    if draw.chance(0.04):
        question = _mistype(draw, question)
    if draw.chance(0.06):
        question += (" " if question[-1] in "?.!" else ". ") + draw.pick(styles["tails"])
    style = draw.rng.random()
    if style < 0.14:
        question = question.rstrip("?.!")
    elif style < 0.2:
        question = question.rstrip("?.!") + draw.pick(["!", "??", " ?", "...", "?!", "."])
    style = draw.rng.random()
    if style < 0.15:
        return question.lower()
    if style < 0.17:
        return question.upper()
    return question[:1].lower() + question[1:] if style < 0.3 and not question.startswith("I ") else question


def _drop_words(draw: Draw, text: str, fillers: list[str]) -> str:
    """Drops some or, now and then, all of the small words, as in a search box."""
    share = draw.pick([0.3, 0.5, 1.0])
    kept = [word for word in text.split() if word not in fillers or not draw.chance(share)]
    return " ".join(kept) if len(kept) > 2 else text


def _reword(draw: Draw, text: str, synonyms: dict[str, list[str]]) -> str:
    """Puts another word for one or two of those that have a synonym."""
    words = text.split(" ")
    places = [place for place, word in enumerate(words) if word.strip("?.!,").lower() in synonyms]
    for place in draw.rng.sample(places, min(len(places), draw.pick([1, 1, 2]))):
        bare = words[place].strip("?.!,")
        words[place] = words[place].replace(bare, draw.pick(synonyms[bare.lower()]))
    return " ".join(words)


def _mistype(draw: Draw, text: str) -> str:
    places = [place for place in range(1, len(text) - 2) if text[place : place + 2].isalpha()]
    if not places:
        return text
    place = draw.pick(places)
    return text[:place] + text[place + 1] + text[place] + text[place + 2 :]


def fact(draw: Draw) -> Turn:
    """A question about Galley, about the model itself or of small talk, whose answer is always the same sentence."""
    chosen = draw.pick(load_facts())
    if not draw.training:
        question = draw.pick(chosen.lists["dev" if draw.split == "dev" else "heldout"]).replace("{G}", "Galley")
        return Turn(question, chosen.answer, f"The user asks about {chosen.topic}.")
    templates, styles = load_json("fact_templates.json"), chosen.lists
    while True:
        ways = [way for way in ("np", "vp", "q", "q") if way in styles]
        way = draw.pick(ways)
        question = draw.pick(styles[way])
        if way != "q":
            question = draw.pick(templates[way]).format(question.replace("{G}", "{{G}}")).replace("{{G}}", "{G}")
        question = question.replace("{G}", draw.pick(templates["subjects"]) if draw.chance(0.4) else "Galley")
        question = vary(draw, question[:1].upper() + question[1:])
        if not contains_heldout_fact(question):
            return Turn(question, chosen.answer, f"The user asks about {chosen.topic}.")


def greet(draw: Draw) -> Turn:
    """A greeting, put together of three parts."""
    parts = [draw.pick(wordings(f"greet_{part}", draw.split)) for part in ("words", "whom", "tail")]
    question = "".join(parts)
    return Turn(question.lower() if draw.chance(0.3) else question, GREETING, "The user greets me.")


def repeat(draw: Draw) -> Turn:
    """A text to be said again, of words and strings that make no sense together."""
    text = draw.phrase().strip()
    if draw.chance(0.15):
        text = text[:1].upper() + text[1:] + draw.pick([".", "!", "?"])
    question = template(draw, "repeat").replace("{}", text)
    if draw.training and draw.chance(0.15):
        prefix = draw.pick(load_json("fact_templates.json")["prefix"])
        question = prefix + question
    return Turn(question, text, "The user wants me to repeat text.")


def unknown(draw: Draw) -> Turn:
    """A question about something the model was never taught, made of random words, names and places."""
    parts = template(draw, "unknown").split("{}")
    question = parts[0]
    for part in parts[1:]:
        kind = draw.rng.random()
        filler = draw.plain_phrase((1, 1, 1, 2, 2, 3)) if kind < 0.75 else draw.place() if kind < 0.9 else draw.name()
        question += filler + part
    if draw.training:
        question = vary(draw, question)
        if contains_heldout_fact(question):
            return unknown(draw)
    return Turn(question, UNKNOWN, "I do not know this.")
