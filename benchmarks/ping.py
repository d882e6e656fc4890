"""How fast is /ping answered while many clients stream and others send long prompts?

    python benchmarks/ping.py --model models/galley-tiny

Starts `serve` with a place in the engine's batch for everybody, opens --num-streams streams that never stop coming, and
has --num-long clients send prompts of --long-len tokens, as text, one after the other and each another one; with
--truncate the engine is not what they wait for, so that the workers tokenise all the time. Meanwhile /ping is asked
every --interval-ms, each time on a connection of its own, as the platform does; what counts is the time from the
connect to the last byte. The load comes from processes of its own, so that it does not hold up the pings.
"""

import argparse
import asyncio
import contextlib
import http.client
import itertools
import json
import multiprocessing
import os
import random
import sys
import time
import urllib.parse
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Any

import aiohttp

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # so that the script runs from a checkout that is not installed

from benchmarks.common import finish, machine, percentile, say
from benchmarks.serving import server
from engine.text import Tokenizer

_LETTERS = "abcdefghijklmnopqrstuvwxyz     "
_PING_TIMEOUT_S = 30.0
_REQUEST_TIMEOUT_S = 600


def long_text(tokenizer: Tokenizer, num_tokens: int, seed: int) -> str:
    """A text of about so many tokens, and not more."""
    generator = random.Random(seed)
    text = "".join(generator.choices(_LETTERS, k=num_tokens * 8))
    return tokenizer.decode(tokenizer.encode(text)[: num_tokens * 19 // 20])


async def _forever(url: str, bodies: list[dict[str, Any]], counts: "list[Synchronized[int]]") -> None:
    timeout = aiohttp.ClientTimeout(total=_REQUEST_TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:

        async def client(body: dict[str, Any]) -> None:
            for number in itertools.count():
                fresh = {**body, "inputs": f"{number} {body['inputs']}"}  # not in the prefix cache
                async with session.post(f"{url}/invocations", json=fresh) as response:
                    async for _ in response.content:
                        pass
                    is_good = response.status == 200
                with counts[is_good].get_lock():
                    counts[is_good].value += 1

        await asyncio.gather(*map(client, bodies))


def load(url: str, bodies: list[dict[str, Any]], counts: "list[Synchronized[int]]") -> None:
    """A process that sends each of the bodies, again and again; counts: [failed, answered]."""
    with contextlib.suppress(aiohttp.ClientError, KeyboardInterrupt):
        asyncio.run(_forever(url, bodies, counts))


def ping(address: str) -> float:
    """Seconds of one /ping on a new connection. Raises AssertionError when it is not 200."""
    start = time.perf_counter()
    connection = http.client.HTTPConnection(address, timeout=_PING_TIMEOUT_S)
    connection.request("GET", "/ping")
    response = connection.getresponse()
    response.read()
    connection.close()
    assert response.status == 200, response.status
    return time.perf_counter() - start


def ping_for(address: str, seconds: float, interval_s: float) -> list[float]:
    """Seconds of each /ping of the next `seconds`."""
    found = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found.append(ping(address))
        time.sleep(interval_s)
    return found


def summarise(seconds: list[float]) -> dict[str, Any]:
    """Latencies in milliseconds."""
    percents = {f"p{percent}_ms": round(1000 * percentile(seconds, percent), 1) for percent in (50, 90, 99)}
    return {"pings": len(seconds), **percents, "max_ms": round(1000 * max(seconds), 1)}


def measure(url: str, args: argparse.Namespace) -> dict[str, Any]:
    """/ping on an idle server, then under load."""
    tokenizer = Tokenizer.from_dir(Path(args.model))
    address = urllib.parse.urlsplit(url).netloc
    idle = ping_for(address, 3, args.interval_ms / 1000)
    stream = {"inputs": "Once", "parameters": {"max_new_tokens": args.stream_len}, "stream": True}
    parameters = {"max_new_tokens": 1, "truncate": args.truncate or None}
    texts = [long_text(tokenizer, args.long_len, seed) for seed in range(args.num_long)]
    long = [{"inputs": text, "parameters": parameters} for text in texts]
    jobs = {"streams": [stream] * args.num_streams, "long": long}
    counts = {name: [multiprocessing.Value("i", 0), multiprocessing.Value("i", 0)] for name in jobs}
    processes = [
        multiprocessing.Process(target=load, args=(url, bodies, counts[name]), daemon=True)
        for name, bodies in jobs.items()
    ]
    for process in processes:
        process.start()
    time.sleep(args.warm_up_s)
    busy = ping_for(address, args.duration_s, args.interval_ms / 1000)
    for process in processes:
        process.terminate()
        process.join()
    return {
        "long_prompt_tokens": len(tokenizer.encode(texts[0])) if texts else 0,
        "idle": summarise(idle),
        "busy": summarise(busy),
        **{f"{name}_answered": answered.value for name, (_, answered) in counts.items()},
        **{f"{name}_failed": failed.value for name, (failed, _) in counts.items()},
    }


def main() -> None:
    """Measure and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="a server that runs already; without it one is started")
    parser.add_argument("--model", default="models/galley-tiny", help="model directory")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--num-streams", type=int, default=64)
    parser.add_argument("--stream-len", type=int, default=2000)
    parser.add_argument("--num-long", type=int, default=8)
    parser.add_argument("--long-len", type=int, default=8192)
    parser.add_argument(
        "--truncate",
        type=int,
        default=0,
        help="the engine gets only so many of the tokens: workers tokenise all the time",
    )
    parser.add_argument("--interval-ms", type=float, default=20.0)
    parser.add_argument("--warm-up-s", type=float, default=5.0)
    parser.add_argument("--duration-s", type=float, default=30.0)
    args = parser.parse_args()
    os.environ.setdefault("SM_GALLEY_MAX_NUM_SEQS", str(args.num_streams + args.num_long))
    with contextlib.nullcontext(args.url) if args.url else server(args) as url:
        result = measure(url, args)
    for key, value in result.items():
        say(f"{key:20} {json.dumps(value)}")
    finish({"benchmark": "ping", **vars(args), "results": result, "machine": machine()})


if __name__ == "__main__":
    main()
