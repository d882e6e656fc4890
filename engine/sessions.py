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
    """Opens, checks and ends sessions; at most MAX_SESSIONS of them: one more ends the one that was idle longest.

    So whoever opens thousands and uses none cannot keep others from theirs.
    """

    def __init__(self, kv_cache: KVCacheManager, clock: Callable[[], float] = time.monotonic) -> None:
        self._kv_cache = kv_cache
        self._clock = clock
        # The one whose last turn, or opening, is longest ago stands first.
        self._open: OrderedDict[str, Session] = OrderedDict()
        self._may_warn = True

    def __len__(self) -> int:
        return len(self._open)

    def open(self, lifetime_s: float) -> Session:
        """A new session."""
        if len(self._open) >= MAX_SESSIONS:
            self.end_expired()
        if len(self._open) >= MAX_SESSIONS:
            if self._may_warn:
                log.warning("%d sessions are open, so each new one ends the one that was idle longest", MAX_SESSIONS)
            self._may_warn = False
            self._end(next(iter(self._open.values())))
        session = Session(str(uuid.uuid4()), time.time() + lifetime_s, self._clock() + lifetime_s)
        self._open[session.id] = session
        self._kv_cache.open_session(session.id)
        return session

    def check(self, session_id: str) -> Session:
        """The open session of that id, which is idle no longer. Raises SessionNotFound."""
        session = self._open.get(session_id)
        if session is None or session.deadline <= self._clock():
            raise SessionNotFound(session_id)
        self._open.move_to_end(session_id)
        return session

    def close(self, session_id: str) -> Session:
        """End a session; what runs in it goes on. Raises SessionNotFound."""
        session = self.check(session_id)
        self._end(session)
        return session

    def end_expired(self) -> None:
        """End all whose time is over."""
        now = self._clock()
        self._may_warn = self._may_warn or len(self._open) < MAX_SESSIONS // 2
        for session in [session for session in self._open.values() if session.deadline <= now]:
            self._end(session)

    def _end(self, session: Session) -> None:
        del self._open[session.id]
        self._kv_cache.close_session(session.id)
