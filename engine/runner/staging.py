"""What a step sends to the device: all of it packed into one int32 buffer, and so into one copy.

Two buffers take turns on the host: while the device may still copy from one, the next step fills the other. Knows words
and segments; must not know what they mean.
"""

import dataclasses
import itertools
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.runner.device import Device, Pending, Work

IntArray = np.ndarray[Any, np.dtype[np.int32]]

# Segments begin at multiples of 128 bytes: kernels are compiled for aligned pointers, once.
_ALIGNMENT = 32


def padded(num_words: int) -> int:
    """Words that a segment of `num_words` takes."""
    return -(-num_words // _ALIGNMENT) * _ALIGNMENT


@dataclasses.dataclass(frozen=True, slots=True)
class Segment:
    """Words of a packet: where they lie in the buffer or, too many for it, a host tensor of their own."""

    start: int
    num_words: int
    own: Tensor | None = None


class Packet:
    """One step's words. Filled on the host, then sent once, as the first thing that the step's work does."""

    def __init__(self, host: Tensor, device_words: Tensor, device: Device) -> None:
        self._host = host
        self._array: IntArray = host.numpy()
        self._device_words = device_words
        self._device = device
        self._num_words = 0

    def reserve(self, num_words: int) -> tuple[IntArray, Segment]:
        """Room for `num_words` more: the array to fill, and what finds them on the device. Contents are undefined."""
        start, end = self._num_words, self._num_words + num_words
        if end > len(self._array):
            own = self._device.host_words(num_words)
            return own.numpy(), Segment(0, num_words, own)
        self._num_words = start + padded(num_words)
        return self._array[start:end], Segment(start, num_words)

    def put(self, values: Any) -> Segment:
        """Reserve and fill: values [n] of any integer type, or float32, whose bits are kept."""
        values = np.asarray(values)
        to, segment = self.reserve(len(values))
        to[:] = values.view(np.int32) if values.dtype == np.float32 else values
        return segment

    def send(self) -> None:
        """On the device, in order with other work: take the words over."""
        num_words = min(self._num_words, len(self._array))
        self._device_words[:num_words].copy_(self._host[:num_words], non_blocking=True)

    def on_device(self, segment: Segment) -> Tensor:
        """After `send`: the segment's words, int32. They stay until the next packet is sent."""
        if segment.own is not None:
            return segment.own.to(self._device_words.device, non_blocking=True)
        return self._device_words[segment.start : segment.start + segment.num_words]


class Staging:
    """The two host buffers and the device's one; its address never changes, so that graphs may read from it."""

    def __init__(self, device: Device, num_words: int) -> None:
        self._device = device
        self._hosts = [device.host_words(padded(num_words)) for _ in range(2)]
        self._readers: list[Pending | None] = [None, None]
        self._words = torch.zeros(padded(num_words), dtype=torch.int32, device=device.torch_device)
        self._next = 0
        self._has_failed = False

    def open(self) -> Packet:
        """The next step's packet, in the buffer whose last reader has finished."""
        if self._has_failed:
            self._device.recover()
            self._has_failed = False
        reader = self._readers[self._next]
        if reader is not None:
            reader.settle()
        return Packet(self._hosts[self._next], self._words, self._device)

    def submit(self, work: Work) -> Pending:
        """Give the device work that sends the packet opened last; its buffer is not written before that is done."""
        # If this raises nobody can wait for the part of the work that the device has got.
        self._has_failed = True
        reader = self._device.submit(work)
        self._has_failed = False
        self._readers[self._next] = reader
        self._next = 1 - self._next
        return reader

    def words(self, sizes: Iterable[int]) -> tuple[Tensor, ...]:
        """Where on the device the first segments of any packet lie that reserves these sizes first."""
        starts = itertools.accumulate(map(padded, sizes), initial=0)
        return tuple(self._words[start : start + size] for start, size in zip(starts, sizes, strict=False))
