"""One setting as the command line and the environment name it, and the values that texts mean.

Knows names, kinds of value and how to say what is wrong with one. Must not know which settings there are, nor which
place wins: that is `container.config`.
"""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any, Literal

ENV_PREFIX = "SM_GALLEY_"
_MAX_SHOWN_CHARS = 60


class ConfigError(Exception):
    """A setting is unknown or has a bad value. The message is one line that names the setting and its source."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """One field of either dataclass, as the command line and the environment name it."""

    name: str
    owner: type
    hint: Any
    default: Any
    help: str

    @property
    def flag(self) -> str:
        """`max_num_seqs` → `--max-num-seqs`."""
        return "--" + self.name.replace("_", "-")

    @property
    def env_name(self) -> str:
        """`max_num_seqs` → `SM_GALLEY_MAX_NUM_SEQS`."""
        return ENV_PREFIX + self.name.upper()

    @property
    def kind(self) -> str:
        """The type of value, in a word for people."""
        if self.choices:
            return "|".join(self.choices)
        return {int: "integer", float: "number", bool: "true|false"}.get(self._plain_type, "text")

    @property
    def choices(self) -> tuple[str, ...]:
        """The allowed words, where the type is a Literal."""
        plain = self._plain_type
        return typing.get_args(plain) if typing.get_origin(plain) is Literal else ()

    @property
    def _plain_type(self) -> Any:
        if isinstance(self.hint, types.UnionType):
            return next(part for part in typing.get_args(self.hint) if part is not types.NoneType)
        return self.hint

    def parse(self, text: str) -> Any:
        """The value that `text` means. Raises ValueError with what was expected."""
        if self.choices:
            if text not in self.choices:
                raise ValueError(f"must be {' or '.join(self.choices)}, not {text!r}{did_you_mean(text, self.choices)}")
            return text
        return _PARSERS[self._plain_type](text)


def _parse_int(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"must be an integer, not {_shown(text)}") from None


def _shown(text: str) -> str:
    return repr(text if len(text) <= _MAX_SHOWN_CHARS else text[:_MAX_SHOWN_CHARS] + "…")


def _parse_float(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    # "inf" and "nan" would pass any check of a range from one side.
    if not math.isfinite(number):
        raise ValueError(f"must be a number, not {_shown(text)}")
    return number


def _parse_bool(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0"):
        raise ValueError(f"must be true or false, not {text!r}")
    return text.lower() in ("true", "1")


_PARSERS: dict[Any, Callable[[str], Any]] = {int: _parse_int, float: _parse_float, bool: _parse_bool, str: str}


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """` (did you mean …?)`, or nothing when no candidate is near."""
    close = difflib.get_close_matches(word, list(candidates), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


@dataclasses.dataclass(frozen=True)
class Given:
    """A value as it was given, and the name under which the giver knows it, for messages."""

    value: Any
    origin: str


Layer = dict[str, Given]


def clean_secret(given: Given) -> Given:
    """Without the end of a line, with which secrets come. Raises ConfigError, showing nothing, for what none can be."""
    text = str(given.value).strip()
    if not (text.isascii() and text.isprintable()):
        raise ConfigError(f"{given.origin} holds characters that no token has")
    return Given(text, given.origin)


def parse_given(setting: Setting, text: str, origin: str) -> Given:
    """The value of `text`. Raises ConfigError with one line that begins with `origin`."""
    try:
        return Given(setting.parse(text), origin)
    except ValueError as error:
        raise ConfigError(f"{origin} {error}") from None
