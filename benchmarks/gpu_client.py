"""One process of the load that `benchmarks/gpu_serving.py` makes: streams that all start at one moment.

Reads one task on stdin, says `ready`, reads the moment to start at (of the clock that all processes of a machine
share), and prints what it saw: when it started and ended, and of each stream [seconds to the first piece, seconds in
all, output tokens]. Must not import torch, which would take longer than the work.
"""

import asyncio
import json
import sys
import time
from typing import Any

import aiohttp

_REQUEST_TIMEOUT_S = 300.0


async def one_stream(
    session: aiohttp.ClientSession, task: dict[str, Any], prompt: list[int]
) -> tuple[float, float, int]:
    """Send one prompt and read its stream to the end; of that only the last event, its usage, is parsed."""
    body = {
        "prompt": prompt, "max_tokens": task["output_len"], "temperature": 0, "ignore_eos": True, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    started = time.monotonic()
    first = 0.0
    tail = b""
    async with session.post(f"{task['url']}/v1/completions", json=body) as response:
        async for piece in response.content.iter_any():
            first = first or time.monotonic() - started
            tail = (tail + piece)[-4096:]
        if response.status != 200:
            raise RuntimeError(f"{response.status}: {tail[:200]!r}")
    events = [line[6:] for line in tail.splitlines() if line.startswith(b"data: {")]
    usage = json.loads(events[-1]).get("usage") if events else None
    if not usage:
        raise RuntimeError(f"a stream ended without usage: {tail[-200:]!r}")
    return first, time.monotonic() - started, int(usage["completion_tokens"])


async def load(task: dict[str, Any], start_at: float) -> dict[str, Any]:
    """All prompts of the task at once."""
    timeout = aiohttp.ClientTimeout(total=_REQUEST_TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        await asyncio.sleep(max(0.0, start_at - time.monotonic()))
        started = time.monotonic()
        streams = await asyncio.gather(*(one_stream(session, task, prompt) for prompt in task["prompts"]))
        return {"started": started, "ended": time.monotonic(), "streams": streams}


def main() -> None:
    """Serve one task."""
    task = json.loads(sys.stdin.readline())
    print("ready", flush=True)
    start_at = float(sys.stdin.readline())
    print(json.dumps(asyncio.run(load(task, start_at))), flush=True)


if __name__ == "__main__":
    main()
