"""Hypothesis profiles. `--hypothesis-profile=nightly` looks for what a few hundred examples do not find."""

import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# No test asserts a duration that a busy machine could miss.
settings.register_profile("test", deadline=None)
settings.register_profile(
    "nightly", max_examples=10_000, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("test")


@pytest.fixture(scope="session", autouse=True)
def signals_as_in_a_terminal() -> Iterator[None]:
    """Whoever runs the tests in the background or under nohup has Ctrl-C and hang-up ignored, here and in children."""
    earlier = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP)}
    if earlier[signal.SIGINT] is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if earlier[signal.SIGHUP] is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in earlier.items():
        signal.signal(number, handler)
