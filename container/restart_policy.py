"""When a dead engine is started again, and when it is given up. Pure: knows times, must not know processes."""

import dataclasses
from collections import deque

_FIRST_DELAY_S = 0.5
_DELAY_FACTOR = 4.0
_MAX_DELAY_S = 30.0


@dataclasses.dataclass
class RestartPolicy:
    """At most `max_restarts` within any `window_s` seconds, each waiting four times as long as the one before."""

    max_restarts: int
    window_s: float

    def __post_init__(self) -> None:
        self._deaths: deque[float] = deque()

    def delay_s(self, now: float) -> float | None:
        """Seconds to wait before the restart after a death at `now`; None when it is one too many."""
        while self._deaths and now - self._deaths[0] > self.window_s:
            self._deaths.popleft()
        self._deaths.append(now)
        num_deaths = len(self._deaths)
        if num_deaths > self.max_restarts:
            return None
        return min(_MAX_DELAY_S, _FIRST_DELAY_S * _DELAY_FACTOR ** (num_deaths - 1))
