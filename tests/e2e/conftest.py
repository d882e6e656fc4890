"""One running stack for the tests that do not break it."""

from collections.abc import Iterator

import pytest

from tests.e2e.stack import Stack


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    running = Stack()
    try:
        running.wait_ready()
        yield running
    finally:
        assert running.stop() == 0
