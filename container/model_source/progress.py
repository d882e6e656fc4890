"""How far a download is, as one line for people: in the log now and then, and in the stage that /ping shows.

Knows bytes and clocks. Must not know what is downloaded, or who shows the line.
"""

import logging
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

_GB = 1_000_000_000
_LOG_EVERY_S = 10.0
_PUBLISH_EVERY_S = 0.5


class Progress:
    """Counts bytes from any thread. publish: takes each new line, called from the thread that counted."""

    def __init__(self, publish: Callable[[str], None]) -> None:
        self._publish = publish
        self._lock = threading.Lock()
        self._total = 0
        self._here = 0
        self._num_at_start = 0
        self._started = time.monotonic()
        self._published_at = self._logged_at = self._started

    def say(self, line: str) -> None:
        """Show a line about something that is not counted in bytes."""
        log.info("%s", line)
        self._publish(line)

    def start(self, total_bytes: int, num_here_bytes: int) -> None:
        """A download of so many bytes begins, some of which an earlier one has left."""
        with self._lock:
            self._total, self._here, self._num_at_start = total_bytes, num_here_bytes, num_here_bytes
            self._started = self._logged_at = time.monotonic()
        self.say(self.line())

    def add(self, num_bytes: int) -> None:
        """So many bytes more are here; fewer, if what came must be fetched again."""
        with self._lock:
            self._here += num_bytes
            now = time.monotonic()
            is_shown, is_logged = now - self._published_at >= _PUBLISH_EVERY_S, now - self._logged_at >= _LOG_EVERY_S
            if is_shown:
                self._published_at = now
            if is_logged:
                self._logged_at = now
        if is_shown:
            self._publish(self.line())
        if is_logged:
            log.info("%s, %.0f MB/s", self.line(), self._bytes_per_s() / 1e6)

    def finish(self) -> None:
        """Everything is here."""
        took_s = time.monotonic() - self._started
        log.info("downloaded %.2f GB in %.1f s, %.0f MB/s", self._fetched / _GB, took_s, self._bytes_per_s() / 1e6)

    def line(self) -> str:
        """`downloading the model: 3.1 of 15.0 GB`."""
        here = min(self._here, self._total)
        if self._total < _GB:
            return f"downloading the model: {here / 1e6:.0f} of {self._total / 1e6:.0f} MB"
        return f"downloading the model: {here / _GB:.1f} of {self._total / _GB:.1f} GB"

    @property
    def _fetched(self) -> int:
        return self._here - self._num_at_start

    def _bytes_per_s(self) -> float:
        return self._fetched / max(1e-3, time.monotonic() - self._started)
