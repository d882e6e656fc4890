"""Framing of the Unix socket: a 4-byte big-endian length, then that many bytes of one message.

Sans I/O, so that the engine's threads, the workers' greenlets and the supervisor share it. Must not know what a message
says.
"""

import struct

MAX_FRAME_BYTES = 256 * 2**20
_LENGTH = struct.Struct(">I")


class FrameError(Exception):
    """The peer sent a length that no message of ours has; the connection cannot be trusted any more."""


def frame(payload: bytes) -> bytes:
    """`payload` with its length in front. Raises FrameError when it is longer than MAX_FRAME_BYTES."""
    if len(payload) > MAX_FRAME_BYTES:
        raise FrameError(f"a message of {len(payload)} bytes is over the limit of {MAX_FRAME_BYTES}")
    return _LENGTH.pack(len(payload)) + payload


class FrameReader:
    """Cuts a byte stream into payloads: feed it what the socket gave, take what is whole."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The payloads that `data` completes, in order. Raises FrameError on an impossible length."""
        self._buffer += data
        payloads: list[bytes] = []
        start = 0
        while len(self._buffer) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer, start)
            if length > MAX_FRAME_BYTES:
                raise FrameError(f"a message of {length} bytes is over the limit of {MAX_FRAME_BYTES}")
            end = start + _LENGTH.size + length
            if len(self._buffer) < end:
                break
            payloads.append(bytes(self._buffer[start + _LENGTH.size : end]))
            start = end
        del self._buffer[:start]
        return payloads
