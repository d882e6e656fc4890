"""From staging buffers to the device: the seam between reading files, which is the same everywhere, and CUDA.

A reader fills a buffer; `upload` copies it, on a GPU asynchronously; before the buffer is filled again, whoever does it
asks for its memory, and that is where the wait for the copies is, the only one of a load. Must not know files.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor


class StagingBuffer(Protocol):
    """Memory that files are read into."""

    def memory(self) -> Tensor:
        """Its bytes, uint8, to be overwritten: waits until copies from it are done. May be called on any thread."""
        ...


class Uploader(Protocol):
    """Copies to one device. All methods but the buffers' are called on one thread."""

    def new_buffer(self, num_bytes: int) -> StagingBuffer:
        """A buffer whose memory is allocated when it is first asked for."""
        ...

    def upload(self, buffer: StagingBuffer, copy: Callable[[], None]) -> None:
        """Run `copy`, which copies out of the buffer and computes on the device, after all that ran before it.

        The device's part may be done later: until then the buffer's `memory` waits. Tensors that `copy` allocates on
        the device are for later calls of it only.
        """
        ...

    def wait(self) -> None:
        """Until everything is done on the device. To be called in every case, before a destination is freed."""
        ...


def uploader_for(device: torch.device) -> Uploader:
    """The fastest for `device`."""
    return CudaUploader(device) if device.type == "cuda" else PlainUploader()


class PlainUploader:
    """Copies at once: to the CPU, and wherever there are no streams."""

    def new_buffer(self, num_bytes: int) -> StagingBuffer:
        """Ordinary memory."""
        return _PlainBuffer(num_bytes)

    def upload(self, buffer: StagingBuffer, copy: Callable[[], None]) -> None:
        """See `Uploader.upload`: done when it returns."""
        copy()

    def wait(self) -> None:
        """Nothing is ever under way."""


class _PlainBuffer:
    def __init__(self, num_bytes: int) -> None:
        self._num_bytes = num_bytes
        self._memory: Tensor | None = None

    def memory(self) -> Tensor:
        if self._memory is None:
            self._memory = torch.empty(self._num_bytes, dtype=torch.uint8)
        return self._memory


class CudaUploader:
    """Copies from pinned memory on a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def new_buffer(self, num_bytes: int) -> StagingBuffer:
        """Pinned memory. Torch keeps it for later pinned tensors when the buffer is gone."""
        return _PinnedBuffer(num_bytes, self._device)

    def upload(self, buffer: StagingBuffer, copy: Callable[[], None]) -> None:
        """See `Uploader.upload`."""
        if not isinstance(buffer, _PinnedBuffer):
            raise TypeError("the buffer is another uploader's")
        # Destinations are allocated on the current stream, perhaps from memory that work queued there still uses.
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            copy()
            buffer.copied.record(self._stream)

    def wait(self) -> None:
        """See `Uploader.wait`. The host waits, so every stream that is launched on afterwards sees the weights."""
        self._stream.synchronize()


class _PinnedBuffer:
    def __init__(self, num_bytes: int, device: torch.device) -> None:
        self._num_bytes = num_bytes
        self._device = device
        self._memory: Tensor | None = None
        # blocking: the waiting thread sleeps, and leaves its core to the readers.
        self.copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]

    def memory(self) -> Tensor:
        if self._memory is None:
            # Without the device, a thread's pinned memory would open a context on the first GPU.
            with torch.cuda.device(self._device):
                self._memory = torch.empty(self._num_bytes, dtype=torch.uint8, pin_memory=True)
        else:
            self.copied.synchronize()
        return self._memory
