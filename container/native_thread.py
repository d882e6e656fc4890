"""Long computations in a native thread, so that a worker goes on serving its other requests.

Knows gevent's thread pool. Must not know what is computed.
"""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import gevent

from engine.api import ServingError

P = ParamSpec("P")
ResultT = TypeVar("ResultT")


def in_thread(function: Callable[P, ResultT], *args: P.args, **kwargs: P.kwargs) -> ResultT:
    """The function's result, or its error. Only code that releases the GIL now and then lets others run."""

    def outcome() -> tuple[ResultT | None, Exception | None]:
        # The pool would print the traceback of whatever leaves it, the caller's mistakes included.
        try:
            return function(*args, **kwargs), None
        except (ServingError, ValueError, OSError) as error:
            return None, error

    computed: tuple[ResultT, Exception | None] = gevent.get_hub().threadpool.apply(outcome)
    if computed[1] is not None:
        raise computed[1]
    return computed[0]
