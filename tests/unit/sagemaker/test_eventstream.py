"""Event-stream framing, read back by botocore's own parser."""

import json

import pytest
from botocore.eventstream import EventStreamBuffer
from hypothesis import given
from hypothesis import strategies as st

from sagemaker import eventstream


@given(payloads=st.lists(st.binary(max_size=300), max_size=4), cut=st.integers(1, 50))
def test_botocore_reads_what_we_write(payloads: list[bytes], cut: int) -> None:
    data = b"".join(eventstream.payload_part(payload) for payload in payloads)
    buffer, found = EventStreamBuffer(), []
    for start in range(0, len(data), cut):
        buffer.add_data(data[start : start + cut])
        found += list(buffer)
    assert [message.payload for message in found] == payloads
    for message in found:
        assert message.headers[":message-type"] == "event"
        assert message.headers[":event-type"] == "PayloadPart"


@pytest.mark.parametrize("code", ["ModelInvocationTimeExceeded", "StreamBroken"])
def test_errors(code: eventstream.StreamErrorCode) -> None:
    buffer = EventStreamBuffer()
    buffer.add_data(eventstream.model_stream_error(code, "why – because"))
    (message,) = buffer
    assert message.headers[":message-type"] == "exception"
    assert message.headers[":exception-type"] == "ModelStreamError"
    assert json.loads(message.payload) == {"Message": "why – because", "ErrorCode": code}
