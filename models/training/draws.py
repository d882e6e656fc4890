"""Random draws of words, names, places and numbers for the corpus, each split into training and held-out values.

A `Draw` knows its split: what it hands out for "heldout" (and "dev") is never handed out for "train". Lists are split
by the md5 of the value, so that adding a line moves no other line to the other side. It knows nothing of skills or
conversations.
"""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal, TypeVar

T = TypeVar("T")
Split = Literal["train", "dev", "heldout"]

DATA = Path(__file__).parent / "data"
HELDOUT = Path(__file__).parent / "heldout"

_ONSETS = [
    *"bcdfghjklmnprstvwz",
    "br",
    "ch",
    "cl",
    "dr",
    "fl",
    "gr",
    "kl",
    "pl",
    "pr",
    "sh",
    "sk",
    "sl",
    "st",
    "th",
    "tr",
]
_VOWELS = [*"aeiou", "ai", "ea", "oo", "ie", "ou"]
_CODAS = ["", "", "n", "r", "s", "t", "l", "m", "ck", "nd", "x", "th", "v"]
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_PLACE_PREFIXES = [
    "New",
    "San",
    "Port",
    "Saint",
    "Los",
    "Santa",
    "El",
    "Fort",
    "North",
    "Lake",
    "Cape",
    "Old",
    "Las",
    "St.",
]
_PLACE_SUFFIXES = [
    "City",
    "Beach",
    "Falls",
    "Springs",
    "Bay",
    "Hills",
    "Park",
    "Town",
    "Island",
    "del Mar",
    "upon Avon",
]


def md5_bucket(text: str, num_buckets: int) -> int:
    """The bucket of `text` in `[0, num_buckets)`. Not a linear rule: one such hid whole digit pairs from training."""
    return int(hashlib.md5(text.encode()).hexdigest(), 16) % num_buckets


@cache
def read_list(name: str, by_line: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The (training, held-out) values of a file in data/: one a line, or many between blanks; `#` starts a comment."""
    lines = [line.strip() for line in (DATA / name).read_text().splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    values = list(dict.fromkeys(lines if by_line else [word for line in lines for word in line.split()]))
    held = [value for value in values if md5_bucket(value, 6) == 0]
    return tuple(value for value in values if md5_bucket(value, 6) != 0), tuple(held)


@dataclass
class Draw:
    """A source of random values.

    rng: the generator; the same seed gives the same corpus.
    split: which side of every list to draw from ("dev" draws held-out values too; only its wordings differ).
    mix: which of corpus.MIXES conversations are drawn by.
    pieces: strings of vocabulary entries, so that the model learns to copy every token; empty until a tokenizer exists.
    """

    rng: random.Random
    split: Split = "train"
    mix: str = "base"
    pieces: list[str] = field(default_factory=list)

    @property
    def training(self) -> bool:
        """Whether this draws for training."""
        return self.split == "train"

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self.rng.random() < probability

    def pick(self, values: Sequence[T]) -> T:
        """One of `values`, all equally likely."""
        return self.rng.choice(values)

    def from_file(self, name: str, by_line: bool = False) -> str:
        """A value of a file in data/, of this split."""
        train, held = read_list(name, by_line)
        return self.pick(train if self.training else held)

    def syllables(self, count: int) -> str:
        """A made-up word. Which made-up words are held out is also md5's choice."""
        while True:
            word = "".join(self.pick(_ONSETS) + self.pick(_VOWELS) for _ in range(count)) + self.pick(_CODAS)
            if (md5_bucket(word, 6) != 0) == self.training:
                return word

    def common_word(self) -> str:
        """A common English word."""
        return self.from_file("words.txt")

    def word(self) -> str:
        """Any single word: common, made up, a number, a random string or, in training, joined vocabulary entries."""
        kind = self.rng.random()
        if self.training and self.pieces and kind < 0.2:
            return "".join(self.pick(self.pieces) for _ in range(self.rng.randint(1, 3)))
        if kind < 0.6:
            return self.common_word()
        return self.syllables(self.pick([1, 2, 2, 3])) if kind < 0.82 else self._random_string()

    def phrase(self, lengths: tuple[int, ...] = (1, 1, 2, 2, 3, 3, 4, 5, 6)) -> str:
        """Words of all kinds with blanks between; `lengths` are the numbers of words to draw from."""
        return " ".join(self.word() for _ in range(self.pick(lengths)))

    def plain_phrase(self, lengths: tuple[int, ...] = (1, 2, 2, 3, 4)) -> str:
        """Words and made-up words only: nothing that needs escaping in JSON or confuses a sentence."""
        return " ".join(self.plain_word() for _ in range(self.pick(lengths)))

    def plain_word(self) -> str:
        """A common or a made-up word."""
        return self.common_word() if self.chance(0.65) else self.syllables(self.pick([1, 2, 2, 3]))

    def name(self) -> str:
        """A first name: real, made up, or a common word."""
        kind = self.rng.random()
        if kind < (0.4 if self.training else 0.7):
            return self.from_file("names.txt")
        if kind < 0.85:
            return self.syllables(self.pick([1, 2, 2, 3])).capitalize()
        return self.common_word().capitalize()

    def place(self) -> str:
        """A city or country: real, made up, or of several words (a trial with few of these stopped after the first)."""
        kind = self.rng.random()
        if kind < (0.4 if self.training else 0.7):
            return self.from_file("places.txt", by_line=True)
        name = (self.syllables(self.pick([1, 2, 2, 3])) if self.chance(0.7) else self.common_word()).capitalize()
        if kind < 0.65:
            return name
        if kind < 0.8:
            return f"{self.pick(_PLACE_PREFIXES)} {name}"
        if kind < 0.88:
            return f"{name} {self.pick(_PLACE_SUFFIXES)}"
        if kind < 0.94:
            return f"{name} {self.syllables(2).capitalize()}"
        return f"{name} de {self.syllables(2).capitalize()}"

    def number_pair(self, highest: int = 99) -> tuple[int, int]:
        """Two numbers in `[0, highest]`; one pair in ten is held out, in both orders of the operands independently."""
        while True:
            top = highest if self.chance(0.75) else min(self.pick([9, 20]), highest)
            pair = self.rng.randint(0, top), self.rng.randint(0, top)
            if (md5_bucket(f"{pair[0]},{pair[1]}", 10) != 0) == self.training:
                return pair

    def _random_string(self) -> str:
        kind, rng = self.rng.random(), self.rng
        if kind < 0.4:
            return "".join(self.pick(_LETTERS) for _ in range(rng.randint(1, 8)))
        if kind < 0.6:
            return "".join(self.pick(_LETTERS + _LETTERS.upper() + "0123456789") for _ in range(rng.randint(2, 8)))
        if kind < 0.8:
            return str(rng.randint(0, 99999))
        alphabet = _LETTERS + _LETTERS.upper() + "0123456789_-.:/#@!%&*+="
        return "".join(self.pick(alphabet) for _ in range(rng.randint(2, 8)))
