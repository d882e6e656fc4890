"""Encoding of `application/vnd.amazon.eventstream`, as InvokeEndpointWithResponseStream answers in.

A message is, big-endian: its total length, the length of its headers, the CRC32 of these two, the headers, the payload,
the CRC32 of all before it. Each header is a length byte, the name, type 7 (text), a two-byte length, the value.

Knows bytes; must not know HTTP.
"""

import json
import struct
import zlib
from typing import Literal

CONTENT_TYPE = "application/vnd.amazon.eventstream"
StreamErrorCode = Literal["ModelInvocationTimeExceeded", "StreamBroken"]

_TEXT_HEADER = 7
_PRELUDE_AND_CRCS_BYTES = 16


def payload_part(data: bytes) -> bytes:
    """The event that carries a piece of the container's answer."""
    headers = {
        ":message-type": "event",
        ":event-type": "PayloadPart",
        ":content-type": "application/octet-stream",
    }
    return encode(headers, data)


def model_stream_error(code: StreamErrorCode, message: str) -> bytes:
    """The event that ends a stream which the container cannot finish; boto3 raises it as an EventStreamError."""
    headers = {
        ":message-type": "exception",
        ":exception-type": "ModelStreamError",
        ":content-type": "application/json",
    }
    return encode(headers, json.dumps({"Message": message, "ErrorCode": code}).encode())


def encode(headers: dict[str, str], payload: bytes) -> bytes:
    """One message."""
    block = b"".join(_header(name.encode(), value.encode()) for name, value in headers.items())
    prelude = struct.pack(">II", len(block) + len(payload) + _PRELUDE_AND_CRCS_BYTES, len(block))
    message = prelude + struct.pack(">I", zlib.crc32(prelude)) + block + payload
    return message + struct.pack(">I", zlib.crc32(message))


def _header(name: bytes, value: bytes) -> bytes:
    return struct.pack(">B", len(name)) + name + struct.pack(">BH", _TEXT_HEADER, len(value)) + value
