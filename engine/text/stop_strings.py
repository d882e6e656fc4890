"""Finding the strings that end an output, while the text still comes in pieces.

Knows text only; must not know tokens.
"""

import functools


class StopStrings:
    """Cuts a text at the first of the stop strings, whatever the pieces it comes in.

    The match that starts first wins; of those that start at the same place, the one that is first in `stops`. A stop
    string that is complete is therefore not reported while one that started before it may still become complete.

    keep: whether the stop string that ended the text is its end.
    matched: the stop string that ended the text, or None.
    """

    def __init__(self, stops: tuple[str, ...], *, keep: bool = False) -> None:
        if not all(stops):
            raise ValueError("a stop string must not be empty")
        self._stops = stops
        self._keep = keep
        # How many characters of each stop string the text ends with, where it is not complete.
        self._num_live = [0] * len(stops)
        # Text not yet given out: from the first place at which some stop string may have started. It is never longer
        # than the longest stop string less one character.
        self._held = ""
        # A stop string within this many characters of the held text was complete too early to count.
        self._num_immune = 0
        self.matched: str | None = None

    def push(self, text: str, *, may_end: bool = True) -> tuple[str, str | None]:
        """Text that is safe to give out, and the stop string if one ended the text. Later text is ignored then.

        may_end: False where no stop string counts that is complete with this text or before.
        """
        if self.matched is not None:
            return "", None
        if not self._stops:
            return text, None
        self._held += text
        self._num_live = [_advance(stop, num, text) for stop, num in zip(self._stops, self._num_live, strict=True)]
        if not may_end:
            self._num_immune = len(self._held)
        match = self._first_match()
        live = self._first_live()
        if match is not None and (live is None or match < live):
            return self._cut(match), self.matched
        end = len(self._held) if live is None else live[0]
        safe, self._held = self._held[:end], self._held[end:]
        self._num_immune = max(0, self._num_immune - end)
        return safe, None

    def finish(self) -> str:
        """What was held back, cut at a stop string if it holds one (`matched` tells). Call it after the last push."""
        match = self._first_match()
        if match is not None:
            return self._cut(match)
        safe, self._held = self._held, ""
        return safe

    def _cut(self, match: tuple[int, int]) -> str:
        start, rank = match
        self.matched = self._stops[rank]
        end = start + len(self.matched) if self._keep else start
        safe, self._held = self._held[:end], ""
        return safe

    def _first_match(self) -> tuple[int, int] | None:
        """(start, rank of the stop string) of the first complete one in the held text that counts."""
        found = (
            (self._held.find(stop, max(0, self._num_immune - len(stop) + 1)), rank)
            for rank, stop in enumerate(self._stops)
        )
        return min((match for match in found if match[0] >= 0), default=None)

    def _first_live(self) -> tuple[int, int] | None:
        """(start, rank) of the first stop string that has begun at the end of the held text and is not complete."""
        return min(((len(self._held) - num, rank) for rank, num in enumerate(self._num_live) if num), default=None)


def _advance(stop: str, num_live: int, text: str) -> int:
    """The longest proper prefix of `stop` that ends a text which ended with `num_live` of it, then went on with `text`.

    In constant time per character on average, whatever the two look like (Knuth, Morris and Pratt 1977).
    """
    if not num_live and stop[0] not in text:
        return 0
    borders = _borders(stop)
    for char in text:
        while num_live and stop[num_live] != char:
            num_live = borders[num_live]
        if stop[num_live] == char:
            num_live += 1
            if num_live == len(stop):
                num_live = borders[num_live]
    return num_live


@functools.lru_cache(maxsize=256)
def _borders(stop: str) -> tuple[int, ...]:
    """At i: the length of the longest proper prefix of stop[:i] that also ends it."""
    borders = [0, 0]
    num = 0
    for char in stop[1:]:
        while num and stop[num] != char:
            num = borders[num]
        if stop[num] == char:
            num += 1
        borders.append(num)
    return tuple(borders)
