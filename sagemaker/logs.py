"""`logs`: what the containers of an endpoint or of a batch job have written.

Knows where SageMaker puts it in CloudWatch. Must not know boto3.
"""

import re
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

from sagemaker.calls import Call, ToolError
from sagemaker.deploy import COMMAND, Tool

FOLLOW_INTERVAL_S = 2.0
# Lines reach CloudWatch late and out of order: each look goes back this far, and skips what it has shown.
_OVERLAP_MS = 30_000
_MAX_REMEMBERED = 50_000
_SINCE = re.compile(r"(\d+)([smhd])")
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_since(text: str) -> float:
    """Seconds, from "90s", "10m", "2h" or "1d". Raises ValueError."""
    found = _SINCE.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is not of the form 90s, 10m, 2h or 1d")
    return int(found[1]) * float(_UNIT_S[found[2]])


def filter_call(name: str, *, is_transform: bool, start_ms: int, token: str | None = None) -> Call:
    """One page of the log, from start_ms (since 1970) on."""
    parameters: dict[str, Any] = {"startTime": start_ms}
    if is_transform:
        parameters |= {"logGroupName": "/aws/sagemaker/TransformJobs", "logStreamNamePrefix": f"{name}/"}
    else:
        parameters["logGroupName"] = f"/aws/sagemaker/Endpoints/{name}"
    if token:
        parameters["nextToken"] = token
    return Call("logs", "FilterLogEvents", parameters)


def logs(tool: Tool, name: str, *, is_transform: bool, since_s: float, follow: bool) -> None:
    """Print the log from since_s ago on; with follow, until Ctrl-C. Raises ToolError."""
    shown: set[str] = set()
    order: deque[str] = deque()
    start_ms = int((time.time() - since_s) * 1000)
    while True:
        newest_ms = start_ms
        for event in _events(tool, name, is_transform=is_transform, start_ms=start_ms, follow=follow):
            newest_ms = max(newest_ms, event["timestamp"])
            if event["eventId"] in shown:
                continue
            shown.add(event["eventId"])
            order.append(event["eventId"])
            tool.say(_line(event))
        while len(order) > _MAX_REMEMBERED:
            shown.discard(order.popleft())
        if not follow:
            if not shown:
                tool.say(f"nothing within {since_s:g} s; next: {COMMAND} logs {name} --since 1d")
            return
        start_ms = max(start_ms, newest_ms - _OVERLAP_MS)
        tool.sleep(FOLLOW_INTERVAL_S)


def _events(tool: Tool, name: str, *, is_transform: bool, start_ms: int, follow: bool) -> Iterator[dict[str, Any]]:
    token: str | None = None
    while True:
        answer = tool.aws.find(filter_call(name, is_transform=is_transform, start_ms=start_ms, token=token))
        if answer is None:
            # The group appears with the first line that a container writes.
            if follow:
                return
            what = " --transform" if is_transform else ""
            raise ToolError(f"{name} has written no log yet: see `{COMMAND} status {name}{what}`, or use --follow")
        yield from answer.get("events", [])
        token = answer.get("nextToken")
        if not token:
            return


def _line(event: dict[str, Any]) -> str:
    moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(event["timestamp"] / 1000))
    return f"{moment} {event['logStreamName']} {event['message'].rstrip()}"
