"""Sessions: who is open, for how long, and whose K/V outlives whose."""

import re

import pytest

from engine.api import InvalidRequest
from engine.kv_cache import KVCacheManager
from engine.sessions import MAX_SESSIONS, Sessions
from tests.engine.test_prefix_cache import PROMPT, Served

# The platform's pattern for what a client sees: BC, NewSessionResponseHeader.
ID = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9])*")
OTHERS = [[200 + 3 * i] * 64 for i in range(12)]


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_session_ends_when_it_is_closed_or_its_time_is_over() -> None:
    clock = Clock()
    sessions = Sessions(KVCacheManager(10, 16), clock)
    first, second = sessions.open(20), sessions.open(60)
    assert first.id != second.id
    assert ID.fullmatch(first.id)
    assert second.expires_s - first.expires_s == pytest.approx(40, abs=1)
    assert sessions.check(first.id) == first
    clock.now += 20
    with pytest.raises(InvalidRequest, match="session not found: " + first.id):
        sessions.check(first.id)
    assert len(sessions) == 2
    sessions.end_expired()
    assert len(sessions) == 1
    assert sessions.close(second.id) == second
    with pytest.raises(InvalidRequest, match="session not found"):
        sessions.close(second.id)
    assert len(sessions) == 0


def test_there_are_only_so_many_and_expired_ones_make_room() -> None:
    clock = Clock()
    sessions = Sessions(KVCacheManager(10, 16), clock)
    for _ in range(MAX_SESSIONS):
        sessions.open(10)
    clock.now += 10
    sessions.open(10)
    assert len(sessions) == 1


def test_whoever_opens_them_all_ends_the_idle_ones_and_not_those_in_use(caplog: pytest.LogCaptureFixture) -> None:
    sessions = Sessions(KVCacheManager(10, 16))
    used, idle = sessions.open(60), sessions.open(60)
    for _ in range(2 * MAX_SESSIONS):
        sessions.open(60)
        sessions.check(used.id)
    assert len(sessions) == MAX_SESSIONS
    assert sessions.check(used.id) == used
    with pytest.raises(InvalidRequest, match="session not found"):
        sessions.check(idle.id)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_flood_of_openings_ends_no_session_that_has_had_a_turn() -> None:
    sessions = Sessions(KVCacheManager(10, 16))
    used = [sessions.open(60) for _ in range(3)]
    for session in used:
        sessions.check(session.id)
    for _ in range(2 * MAX_SESSIONS):
        sessions.open(60)
    assert [sessions.check(session.id) for session in used] == used
    assert len(sessions) == MAX_SESSIONS


def served_with_session(num_blocks: int = 31) -> tuple[Served, Sessions, str]:
    served = Served(num_blocks)
    sessions = Sessions(served.core.scheduler.kv_cache)
    return served, sessions, sessions.open(60).id


def test_a_sessions_last_turn_outlives_other_requests() -> None:
    served, _, session_id = served_with_session()
    served.cached(PROMPT)  # nobody's
    served.cached([1, *PROMPT], session_id=session_id)
    for prompt in OTHERS:  # more than the cache holds
        served.cached(prompt)
    assert served.cached([1, *PROMPT, 5, 6], session_id=session_id) == [96]
    assert served.cached(PROMPT) == [0]


def test_a_closed_session_keeps_nothing() -> None:
    served, sessions, session_id = served_with_session()
    served.cached([1, *PROMPT], session_id=session_id)
    pool = served.core.scheduler.kv_cache.pool
    assert pool.num_kept_blocks == 6
    sessions.close(session_id)
    assert pool.num_kept_blocks == 0
    assert served.cached([1, *PROMPT]) == [96]  # found while nobody needed it
    for prompt in OTHERS:
        served.cached(prompt)
    assert served.cached([1, *PROMPT]) == [0]


def test_only_the_last_turn_is_kept() -> None:
    served, _, session_id = served_with_session(61)
    served.cached([1, *PROMPT], session_id=session_id)
    served.cached([2, *PROMPT], session_id=session_id)
    assert served.core.scheduler.kv_cache.pool.num_kept_blocks == 6
    served.cached([2, *PROMPT, *PROMPT], session_id=session_id)
    assert served.core.scheduler.kv_cache.pool.num_kept_blocks == 12


def test_what_is_noted_of_turns_is_bounded() -> None:
    served = Served(17)
    cache = served.core.scheduler.kv_cache
    sessions = Sessions(cache)
    ids = [sessions.open(60).id for _ in range(40)]
    for session_id in ids:  # all the same, so that each notes the names of the same blocks
        served.cached(PROMPT, session_id=session_id)
        assert sum(map(len, cache._turns.values())) == cache._num_turn_names <= 4 * 16
    for session_id in ids:
        sessions.close(session_id)
    assert (cache._num_turn_names, len(cache._turns), cache.pool.num_kept_blocks) == (0, 0, 0)


def test_sessions_never_keep_a_request_from_running() -> None:
    # Together they would keep five times what there is, and each request needs all of it.
    served = Served(17)
    sessions = Sessions(served.core.scheduler.kv_cache)
    pool = served.core.scheduler.kv_cache.pool
    for turn in range(10):
        session_id = sessions.open(60).id
        served.ask([turn + 1] * 200, 16, session_id=session_id)
        served.ask([turn + 501] * 200, 16)
        assert len(served.drain()) == 2
        assert pool.num_free_blocks == pool.num_usable_blocks
        assert pool.num_kept_blocks <= 8
