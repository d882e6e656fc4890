"""When a dead engine is started again: three times in ten minutes, each time more patiently."""

from container.restart_policy import RestartPolicy


def test_three_restarts_and_no_fourth() -> None:
    policy = RestartPolicy(max_restarts=3, window_s=600)
    assert [policy.delay_s(now) for now in (0, 10, 20, 30)] == [0.5, 2.0, 8.0, None]


def test_old_deaths_are_forgotten() -> None:
    policy = RestartPolicy(max_restarts=1, window_s=600)
    assert [policy.delay_s(now) for now in (0, 601, 1202)] == [0.5, 0.5, 0.5]
    assert policy.delay_s(1203) is None


def test_none_allowed() -> None:
    assert RestartPolicy(max_restarts=0, window_s=600).delay_s(0) is None


def test_the_wait_is_bounded() -> None:
    policy = RestartPolicy(max_restarts=100, window_s=600)
    assert max(policy.delay_s(now) or 0 for now in range(20)) == 30
