"""A batch of records: one request per line of the body, one line of the answer for each, in their order.

As many records are worked on as the engine computes at a time, and the next one begins when one of them has ended, so
that the engine's batch stays full. A record that the engine's queue has no room for waits here. One that cannot be
answered has an error in its line's place; when the engine itself is lost, the whole answer breaks off, so that nobody
takes a half for the whole.

Knows lines and greenlets. Must not know what a record asks for.
"""

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
from flask import Response
from gevent.event import Event

from container.disconnect import DisconnectWatch, hang_up
from container.responses import JSON_LINES, error_body, log_error
from container.routes.serving import WAITING_PART, Serving
from container.schema.body import split
from container.schema.fields import RawBody
from engine.api import (
    DeadlineExceeded,
    EngineDied,
    EngineNotReady,
    InvalidRequest,
    Overloaded,
    RequestAborted,
    ServingError,
)

log = logging.getLogger(__name__)

Answer = Callable[[Serving, RawBody], Response]

# Of answers that wait for an earlier one, or for a client that reads slowly.
_MAX_HELD_BYTES = 64 * 2**20
_FIRST_RETRY_S, _LAST_RETRY_S = 0.05, 1.0


def is_lines(body: bytes) -> bool:
    """Whether a body is JSON objects on lines of their own: a value may itself take several lines.

    One of the first two lines may be broken, and is a record all the same.
    """
    found = lines(body)
    return any(_is_object(line) for line in (next(found, b""), next(found, b"")))


def _is_object(line: bytes) -> bool:
    try:
        split(line)
    except InvalidRequest:
        return False
    return True


def answer(serving: Serving, records: Iterator[bytes], answer_record: Answer) -> Response:
    """The answers to all records. Raises a ServingError that comes before the first line."""
    batch = RecordBatch(serving, records, answer_record)
    return Response(batch, content_type=JSON_LINES.content_type)


class RecordBatch:
    """The body of the response: iterate for the lines. `close` stops what still runs, however the response ends."""

    def __init__(self, serving: Serving, records: Iterator[bytes], answer_record: Answer) -> None:
        """Starts, and waits for the first line. Raises a ServingError if there is none."""
        assert serving.call is not None
        self._call = serving.call
        # One greenlet watches the client's socket for all records.
        self._serving = serving.with_call(socket=None, is_batched=True)
        self._answer_record = answer_record
        self._records = enumerate(records)
        self._done: dict[int, bytes] = {}
        self._num_held_bytes = 0
        self._num_running = 0
        self._error: BaseException | None = None
        self._has_news = Event()
        self._has_room = Event()
        self._has_room.set()
        serving.engine.model()  # not ready: the whole request waits, or fails, rather than each record
        num_seqs = serving.engine.max_num_seqs()
        # What they have with the engine at a time is bounded in `Serving.start`, over all batches.
        self._workers = [gevent.Greenlet(self._work) for _ in range(num_seqs + max(2, num_seqs // WAITING_PART))]
        self._watch = DisconnectWatch(self._call.socket, lambda: self._fail(RequestAborted("The client has left.")))
        self._num_running = len(self._workers)
        for worker in self._workers:
            worker.link_exception(lambda ended: self._fail(ended.exception))
            worker.start()
        self._in_order = self._take_in_order()
        try:
            self._first = next(self._in_order, b"")
        except BaseException:
            self.close()
            raise

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield self._first
            yield from self._in_order
        except ServingError as error:
            log_error(error, self._call.request_id)
            hang_up(self._call.socket)

    def close(self) -> None:
        """Called by the WSGI server at the end of the response."""
        self._watch.stop()
        gevent.killall(self._workers, block=False)

    def _take_in_order(self) -> Iterator[bytes]:
        index = 0
        while True:
            while index not in self._done:
                if self._error is not None:
                    raise self._error
                if not self._num_running:
                    return
                self._has_news.clear()
                self._has_news.wait()
            line = self._done.pop(index)
            self._num_held_bytes -= len(line)
            self._has_room.set()
            yield line
            index += 1

    def _work(self) -> None:
        """One of the places in the batch: record after record."""
        for index, record in self._records:
            line = self._line(record)
            self._done[index] = line
            self._num_held_bytes += len(line)
            self._has_news.set()
            # The record that the others wait for has its place already.
            while self._num_held_bytes > _MAX_HELD_BYTES:
                self._has_room.clear()
                self._has_room.wait()
            gevent.sleep(0)
        self._num_running -= 1
        self._has_news.set()

    def _line(self, record: bytes) -> bytes:
        try:
            return self._answered(record) + b"\n"
        except (EngineDied, EngineNotReady, RequestAborted):
            raise
        except ServingError as error:
            log_error(error, self._call.request_id)
            return JSON_LINES.write(error_body(error.status, error.message, error.param, error.code))

    def _answered(self, record: bytes) -> bytes:
        raw = split(record)
        retry_s = _FIRST_RETRY_S
        while True:
            try:
                return self._answer_record(self._serving, raw).get_data()
            except Overloaded:
                if time.monotonic() + retry_s > self._call.deadline:
                    raise DeadlineExceeded("The record found no room before the request's deadline.") from None
            gevent.sleep(retry_s)
            retry_s = min(2 * retry_s, _LAST_RETRY_S)

    def _fail(self, error: Any) -> None:
        if self._error is None:
            self._error = error
        self._has_news.set()


def lines(body: bytes) -> Iterator[bytes]:
    """The lines that are not empty, one by one: a list of them would take many times the memory of the body."""
    start = 0
    while start < len(body):
        end = body.find(b"\n", start)
        end = len(body) if end < 0 else end
        line = body[start:end].strip()
        start = end + 1
        if line:
            yield line
        else:
            start += _num_blanks(body, start)


def _num_blanks(body: bytes, start: int) -> int:
    """Of the blanks at `start`. Line by line, a body of nothing else would keep the worker for seconds."""
    num_blanks, step = 0, 64
    while window := body[start + num_blanks : start + num_blanks + step]:
        num_here = len(window) - len(window.lstrip())
        num_blanks += num_here
        if num_here < len(window):
            break
        step = min(2 * step, 2**20)
    return num_blanks
