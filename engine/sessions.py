"""The sessions that are open: an id, when it ends, and the K/V of its conversation's last turn.

They live in the engine, so that whichever worker answers knows them; they end with it. A session promises no memory:
the KV cache keeps its blocks longer than others', while nobody needs them (`KVCacheManager.open_session`).

Knows ids and the clock. Must not know HTTP or requests.
"""

import dataclasses
import logging
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable

from engine.api import InvalidRequest
from engine.kv_cache import KVCacheManager

log = logging.getLogger(__name__)

# Each costs its id; what is noted of their blocks is bounded in the cache.
MAX_SESSIONS = 10_000
_MAX_SHOWN_CHARS = 64
_LOOK_INTERVAL_S = 1.0


class SessionNotFound(InvalidRequest):
    """No such session: it was closed, has expired, or the engine was started anew."""

    def __init__(self, session_id: str) -> None:
        # The words that AWS's own containers use.
        super().__init__(f"Bad request: session not found: {session_id[:_MAX_SHOWN_CHARS]}", "session_id")


@dataclasses.dataclass(frozen=True, slots=True)
class Session:
    """An open session. expires_s: Unix time, which clients are told. deadline: the same on the monotonic clock."""

    id: str
    expires_s: float
    deadline: float


class Sessions:
    """Opens, checks and ends sessions; at most MAX_SESSIONS of them.

    One more ends the oldest that has had no turn yet, so that whoever opens thousands and uses none ends his own; where
    there is none, the one that was idle longest.
    """

    def __init__(self, kv_cache: KVCacheManager, clock: Callable[[], float] = time.monotonic) -> None:
        self._kv_cache = kv_cache
        self._clock = clock
        # The one whose last turn is longest ago stands first; and before them those without one.
        self._open: OrderedDict[str, Session] = OrderedDict()
        self._unused: OrderedDict[str, Session] = OrderedDict()
        self._may_warn = True
        self._looked_at = clock()

    def __len__(self) -> int:
        return len(self._open) + len(self._unused)

    def open(self, lifetime_s: float) -> Session:
        """A new session."""
        # Looking at all of them takes a moment, which a flood of openings must not cost the engine each time.
        if len(self) >= MAX_SESSIONS and self._clock() - self._looked_at >= _LOOK_INTERVAL_S:
            self.end_expired()
        if len(self) >= MAX_SESSIONS:
            if self._may_warn:
                log.warning("%d sessions are open, so each new one ends one that is idle", MAX_SESSIONS)
            self._may_warn = False
            self._end(next(iter((self._unused or self._open).values())))
        session = Session(str(uuid.uuid4()), time.time() + lifetime_s, self._clock() + lifetime_s)
        self._unused[session.id] = session
        self._kv_cache.open_session(session.id)
        return session

    def check(self, session_id: str) -> Session:
        """The open session of that id, which is idle no longer. Raises SessionNotFound."""
        session = self._unused.get(session_id) or self._open.get(session_id)
        if session is None or session.deadline <= self._clock():
            raise SessionNotFound(session_id)
        self._unused.pop(session_id, None)
        self._open[session_id] = session
        self._open.move_to_end(session_id)
        return session

    def close(self, session_id: str) -> Session:
        """End a session; what runs in it goes on. Raises SessionNotFound."""
        session = self.check(session_id)
        self._end(session)
        return session

    def end_expired(self) -> None:
        """End all whose time is over."""
        self._looked_at = now = self._clock()
        self._may_warn = self._may_warn or len(self) < MAX_SESSIONS // 2
        for session in [*self._unused.values(), *self._open.values()]:
            if session.deadline <= now:
                self._end(session)

    def _end(self, session: Session) -> None:
        self._open.pop(session.id, None)
        self._unused.pop(session.id, None)
        self._kv_cache.close_session(session.id)
