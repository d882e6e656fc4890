"""Between a worker's greenlets and the native threads in which custom code runs.

The worker's loop must never run a stranger's code, which may block for seconds; and what belongs to the loop (sockets,
mailboxes) must only be touched in it. `in_thread` goes one way, `in_hub` the other, each with the caller's context, so
that `flask.request` is the same request on both sides.

Knows gevent's hub and threads. Must not know what runs.
"""

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, TypeVar

import gevent
from gevent import monkey
from gevent.threadpool import ThreadPool

ResultT = TypeVar("ResultT")

# gevent replaces these where it patches; here the real ones are meant, since a native thread waits for a greenlet.
_NativeQueue: Any = monkey.get_original("queue", "SimpleQueue")
_thread_id: Callable[[], int] = monkey.get_original("_thread", "get_ident")
_start_thread: Any = monkey.get_original("_thread", "start_new_thread")
_NUM_THREADS = 64


class CodeEndedError(Exception):
    """Custom code raised SystemExit, or another error that is meant to end a process."""


class Bridge:
    """One per worker; make it in the hub that serves the requests, after the fork."""

    def __init__(self) -> None:
        self._hub = gevent.get_hub()
        self._hub_thread = _thread_id()
        # Its own pool, as large as requests may block at a time: ours does the tokenising of other requests.
        self._pool = ThreadPool(_NUM_THREADS, hub=self._hub)
        # A health check must not wait behind them.
        self._urgent_pool = ThreadPool(2, hub=self._hub)
        self._jobs: deque[Callable[[], None]] = deque()
        self._wake = self._hub.loop.async_()
        self._wake.start(self._run_jobs)

    def in_thread(self, function: Callable[[], ResultT], *, is_urgent: bool = False) -> ResultT:
        """The function's result from a native thread, or its error."""
        context = contextvars.copy_context()
        pool = self._urgent_pool if is_urgent else self._pool
        result, error = pool.apply(_outcome, (lambda: context.run(function),))
        if error is not None:
            raise error
        return result  # type: ignore[no-any-return]

    def in_hub(self, function: Callable[[], ResultT]) -> ResultT:
        """The function's result from a greenlet of the worker's hub, or its error; waits as a native thread does."""
        if _thread_id() == self._hub_thread:
            return function()
        context = contextvars.copy_context()
        answers: Any = _NativeQueue()
        self._jobs.append(lambda: answers.put(_outcome(lambda: context.run(function))))
        self._wake.send()
        result, error = answers.get()
        if error is not None:
            raise error
        return result  # type: ignore[no-any-return]

    def iterate_in_thread(self, iterator: Iterator[Any]) -> "ThreadIterator":
        """The same items, each computed in a native thread."""
        return ThreadIterator(self, iterator)

    def _run_jobs(self) -> None:
        while self._jobs:
            gevent.spawn(self._jobs.popleft())


class ThreadIterator:
    """See Bridge.iterate_in_thread: the body of a response that custom code streams.

    Its request is still the one in whose context this was made, though Flask has left that by then.
    """

    def __init__(self, bridge: Bridge, iterator: Iterator[Any]) -> None:
        self._bridge = bridge
        self._iterator = iterator
        self._context = contextvars.copy_context()

    def __iter__(self) -> Iterator[Any]:
        end = object()
        while (item := self._bridge.in_thread(lambda: self._context.run(next, self._iterator, end))) is not end:
            yield item

    def close(self) -> None:
        """Called by the WSGI server at the end of the response, whether all of it was sent or not."""
        close = getattr(self._iterator, "close", None)
        if close is not None:
            self._bridge.in_thread(lambda: self._context.run(close))


def native_queue() -> Any:
    """A queue that a greenlet may put into and a native thread take from, waiting."""
    return _NativeQueue()


def awaited(awaitable: Awaitable[Any]) -> Any:
    """What a coroutine function of a script comes to, or its error; the calling native thread waits for it."""

    async def whole() -> Any:
        return await awaitable

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(whole())
    # One coroutine has called the next: its loop runs here, and a thread has one.
    context = contextvars.copy_context()
    answers: Any = _NativeQueue()
    _start_thread(lambda: answers.put(_outcome(lambda: context.run(asyncio.run, whole()))), ())
    result, error = answers.get()
    if error is not None:
        raise error
    return result


def _outcome(function: Callable[[], Any]) -> tuple[Any, Exception | None]:
    # A stranger's code may raise anything, and what leaves a pool's thread unseen is printed or lost.
    try:
        return function(), None
    except Exception as error:  # noqa: BLE001
        return None, error
    except BaseException as error:  # noqa: BLE001
        # sys.exit() in a script ends what it was called for. Raised in a greenlet, it would end the worker.
        ended = CodeEndedError(f"custom code raised {type(error).__name__}")
        ended.__cause__ = error
        return None, ended
