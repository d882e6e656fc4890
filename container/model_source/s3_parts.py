"""Objects of a bucket by many ranged reads at once, into files that a later start can go on with.

A file grows as `NAME.part`, at its full length from the start; `NAME.parts` lists the parts that are in it, one
number per line, each written after its part. Only when all are there does the file get its name.

Knows S3's ranged reads and files. Must not know which objects make a model.
"""

import dataclasses
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from botocore.exceptions import HTTPClientError, IncompleteReadError, ResponseStreamingError

from container.model_source.progress import Progress
from container.model_source.store import RemoteFile

log = logging.getLogger(__name__)

NUM_THREADS = 32
# One connection to S3 brings some 80 MB/s; a part takes a fifth of a second and more, so that requests cost little.
PART_BYTES = 16 * 2**20
_READ_BYTES = 2**20
_NUM_ATTEMPTS = 6
_FIRST_PAUSE_S = 0.25
_INTERRUPTED = (HTTPClientError, IncompleteReadError, ResponseStreamingError, ConnectionError)


@dataclasses.dataclass(frozen=True)
class Wanted:
    """One object, and where it goes: its final path, its unfinished file, and the list of parts in that."""

    key: str
    file: RemoteFile
    path: Path
    part: Path
    parts: Path


def fetch(client: Any, bucket: str, wanted: Sequence[Wanted], progress: Progress) -> None:
    """Fetch what is missing. Raises botocore's errors and OSError; what has come stays for the next time."""
    stop = threading.Event()
    tasks = [task for one in wanted for task in _File(client, bucket, one, progress, stop).tasks(PART_BYTES)]
    with ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="download") as pool:
        futures = [pool.submit(file.fetch, index, start, end) for file, index, start, end in tasks]
        try:
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        finally:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)


class _File:
    """One object that is being fetched."""

    def __init__(self, client: Any, bucket: str, wanted: Wanted, progress: Progress, stop: threading.Event) -> None:
        self._client, self._bucket, self._wanted = client, bucket, wanted
        self._progress, self._stop = progress, stop
        self._lock = threading.Lock()
        self._num_left = 0

    def tasks(self, part_bytes: int) -> Iterator[tuple["_File", int, int, int]]:
        """(self, index, first byte, byte after the last) of each part that is missing."""
        size, path, part, parts = self._wanted.file.size, self._wanted.path, self._wanted.part, self._wanted.parts
        header = f"{part_bytes}\n"
        here = _parts_here(parts, header) if _has_size(part, size) else None
        if here is None:
            parts.write_text(header)
            with part.open("wb") as file:
                file.truncate(size)
            here = set()
        ranges = [(i, start, min(size, start + part_bytes)) for i, start in enumerate(range(0, size, part_bytes))]
        missing = [one for one in ranges if one[0] not in here]
        self._num_left = len(missing)
        if not missing:
            self._finish(path, part, parts)
        return ((self, *one) for one in missing)

    def fetch(self, index: int, start: int, end: int) -> None:
        """One part, with several attempts."""
        for attempt in range(_NUM_ATTEMPTS):
            num_read = [0]
            try:
                if self._stop.is_set():
                    return
                self._fetch_once(start, end, num_read)
                break
            except _INTERRUPTED as error:
                self._progress.add(-num_read[0])
                if attempt == _NUM_ATTEMPTS - 1:
                    raise
                log.info("reading %s again from byte %d: %s", self._wanted.key, start, type(error).__name__)
                self._stop.wait(_FIRST_PAUSE_S * 2**attempt)
        if self._stop.is_set():
            return
        with self._lock:
            with self._wanted.parts.open("a") as file:
                file.write(f"{index}\n")
            self._num_left -= 1
            if not self._num_left:
                self._finish(self._wanted.path, self._wanted.part, self._wanted.parts)

    def _fetch_once(self, start: int, end: int, num_read: list[int]) -> None:
        response = self._client.get_object(
            Bucket=self._bucket,
            Key=self._wanted.key,
            Range=f"bytes={start}-{end - 1}",
            # Never the first half of one version and the second of another.
            IfMatch=self._wanted.file.etag,
        )
        target = os.open(self._wanted.part, os.O_WRONLY)
        try:
            position = start
            while piece := response["Body"].read(min(_READ_BYTES, end - position)):
                if self._stop.is_set():
                    return
                os.pwrite(target, piece, position)
                position += len(piece)
                num_read[0] += len(piece)
                self._progress.add(len(piece))
        finally:
            os.close(target)
            response["Body"].close()
        if position < end:
            raise ConnectionError(f"{position - start} bytes came instead of {end - start}")

    def _finish(self, path: Path, part: Path, parts: Path) -> None:
        part.replace(path)
        parts.unlink(missing_ok=True)


def _has_size(path: Path, size: int) -> bool:
    return path.exists() and path.stat().st_size == size


def _parts_here(parts: Path, header: str) -> set[int] | None:
    """The parts that an earlier start has written; None when there is nothing to go on with."""
    try:
        text = parts.read_text()
    except OSError:
        return None
    if not text.startswith(header):
        return None
    # A line that was cut off has no end, and is not believed.
    return {int(line) for line in text[len(header) :].splitlines(keepends=True) if line.endswith("\n")}
