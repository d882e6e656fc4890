"""Reading files in large chunks by several threads, and handing each chunk's tensors to the device in file order.

Chunks are large and span tensors, so that storage sees few long reads whatever the tensors' sizes. One thread submits
all copies; readers only read. Must not know which tensors a model wants, or what kind of device it is.
"""

import collections
import concurrent.futures
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from engine.loading.uploader import StagingBuffer, Uploader
from engine.loading.weight_files import WeightFile


@dataclasses.dataclass(frozen=True, slots=True)
class ReadOptions:
    """How files are read: by at most so many threads (and no more than cores), into a ring of staging buffers.

    num_buffers: None is two for each thread, so that while one half is read into, the other is copied from; that is
    128 MiB with eight threads. More cost more to allocate, and leave the CPU's cache, for nothing.
    """

    num_threads: int = 8
    num_buffers: int | None = None
    chunk_bytes: int = 8 * 2**20

    def threads(self) -> int:
        """Threads on this machine."""
        return max(1, min(self.num_threads, len(os.sched_getaffinity(0))))

    def buffers(self) -> int:
        """Staging buffers on this machine."""
        return self.num_buffers or 2 * self.threads()


class Destination:
    """A tensor on the device, filled from the bytes of a stored tensor of its shape that come in order."""

    def __init__(self, target: Tensor, stored_type: torch.dtype) -> None:
        """target: contiguous, of any float type; the bytes are converted to it on the device when the last has come."""
        self._target = target
        self._stored_type = stored_type
        self._converts = target.dtype != stored_type
        self._bytes = None if self._converts else target.view(-1).view(torch.uint8)
        self._num_missing = target.numel() * stored_type.itemsize

    def put(self, first: int, data: Tensor) -> None:
        """Copy `data`, uint8, to byte `first` and on, asynchronously where the device can."""
        if self._bytes is None:
            self._bytes = torch.empty(self._num_missing, dtype=torch.uint8, device=self._target.device)
        self._bytes[first : first + len(data)].copy_(data, non_blocking=True)
        self._num_missing -= len(data)
        if self._converts and not self._num_missing:
            self._target.copy_(self._bytes.view(self._stored_type).view(self._target.shape))
            self._bytes = None


@dataclasses.dataclass(frozen=True, slots=True)
class Piece:
    """Bytes that a chunk has of a tensor: `num_bytes` from the chunk's byte `at` on, the tensor's from `first` on."""

    destination: Destination
    first: int
    at: int
    num_bytes: int


@dataclasses.dataclass(frozen=True, slots=True)
class Chunk:
    """So many bytes of a file, read at once, and what they are."""

    file: WeightFile
    offset: int
    num_bytes: int
    pieces: tuple[Piece, ...]


def plan_chunks(file: WeightFile, destinations: Mapping[str, Destination], chunk_bytes: int) -> Iterator[Chunk]:
    """The chunks of `file` that hold tensors with a destination, in order; they end at multiples of `chunk_bytes`."""
    begun: list[Piece] = []
    offset = end = 0
    for name, tensor in file.tensors.items():
        begin = tensor.begin
        while name in destinations and begin < tensor.end:
            if begun and begin // chunk_bytes != offset // chunk_bytes:
                yield Chunk(file, offset, end - offset, tuple(begun))
                begun = []
            if not begun:
                offset = begin
            end = min(tensor.end, (begin // chunk_bytes + 1) * chunk_bytes)
            begun.append(Piece(destinations[name], begin - tensor.begin, begin - offset, end - begin))
            begin = end
    if begun:
        yield Chunk(file, offset, end - offset, tuple(begun))


def load_chunks(
    chunks: Sequence[Chunk], uploader: Uploader, options: ReadOptions, on_loaded: Callable[[int], None]
) -> None:
    """Read `chunks` and submit their copies, in order; when this returns, copies may still be under way.

    on_loaded: told the bytes of each chunk. Raises ValueError where a file cannot be read. All threads end in any case.
    """
    num_threads = options.threads()
    free = [uploader.new_buffer(options.chunk_bytes) for _ in range(min(options.buffers(), len(chunks)))]
    waiting: collections.deque[tuple[Chunk, StagingBuffer, concurrent.futures.Future[Tensor]]] = collections.deque()

    def read(index: int, buffer: StagingBuffer) -> Tensor:
        memory = buffer.memory()
        # Storage gets the next reads while this one is copied out of the page cache; the first ones nobody announced.
        for announced in (index, index + num_threads) if index < num_threads else (index + num_threads,):
            if announced < len(chunks):
                chunks[announced].file.will_need(chunks[announced].offset, chunks[announced].num_bytes)
        chunk = chunks[index]
        chunk.file.read(memory.numpy().data[: chunk.num_bytes], chunk.offset)
        return memory

    def upload_oldest() -> StagingBuffer:
        chunk, buffer, future = waiting.popleft()
        memory = future.result()

        def copy() -> None:
            for piece in chunk.pieces:
                piece.destination.put(piece.first, memory[piece.at : piece.at + piece.num_bytes])

        uploader.upload(buffer, copy)
        on_loaded(chunk.num_bytes)
        return buffer

    with concurrent.futures.ThreadPoolExecutor(num_threads, thread_name_prefix="read-weights") as pool:
        try:
            for index, chunk in enumerate(chunks):
                buffer = free.pop() if free else upload_oldest()
                waiting.append((chunk, buffer, pool.submit(read, index, buffer)))
            while waiting:
                upload_oldest()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
