"""How fast does the HTTP server answer many clients at once, beside transformers' `generate` on the same prompts?

    python benchmarks/serving.py --model models/galley-tiny                    # starts `serve`, measures, stops it
    python benchmarks/serving.py --url http://127.0.0.1:8080 --model NAME      # measures a server that runs

The load generator is this process; the server is others. Each of --num-requests streams /v1/completions with a prompt
of random token ids and exactly --output-len greedy tokens; --max-concurrency of them are open at a time, arriving at
--request-rate per second (Poisson), or as fast as they are answered. transformers gets the same prompts in batches of
--max-concurrency, after the server has stopped.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import json
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # so that the script runs from a checkout that is not installed

from benchmarks.common import TransformersPeer, finish, machine, percentile, random_prompts, say, timed

START_TIMEOUT_S = 600
REQUEST_TIMEOUT_S = 600


@dataclasses.dataclass
class Record:
    """One request: seconds to the first token, between tokens, and in all."""

    ttft_s: float = float("nan")
    itl_s: list[float] = dataclasses.field(default_factory=list)
    e2e_s: float = float("nan")
    num_output_tokens: int = 0
    error: str | None = None


def server(args: argparse.Namespace) -> contextlib.AbstractContextManager[str]:
    """`serve` with the model and type of `args`; yields its URL when it is ready."""
    return started(["--model", args.model, "--dtype", args.dtype], START_TIMEOUT_S)


@contextlib.contextmanager
def started(flags: list[str], timeout_s: float) -> Iterator[str]:
    """`serve` with these flags on a free port of 127.0.0.1; yields its URL. SystemExit where it does not get ready."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, str(ROOT / "serve"), "--host", "127.0.0.1", "--port", str(port), *flags]
    process = subprocess.Popen(command, stdout=sys.stderr)
    url = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + timeout_s
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/ping", timeout=2):
                break
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit("the server did not start")
            time.sleep(0.1)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


async def one_request(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> Record:
    """Stream one completion and note when its tokens came."""
    record = Record()
    start = last = time.perf_counter()
    try:
        async with session.post(f"{url}/v1/completions", json=body) as response:
            if response.status != 200:
                record.error = f"{response.status}: {(await response.text())[:200]}"
                return record
            async for line in response.content:
                if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                    continue
                now = time.perf_counter()
                event = json.loads(line[6:])
                if event.get("usage"):
                    record.num_output_tokens = event["usage"]["completion_tokens"]
                if not event.get("choices"):
                    continue
                if record.ttft_s != record.ttft_s:  # still NaN: the first token
                    record.ttft_s = now - start
                else:
                    record.itl_s.append(now - last)
                last = now
    except (aiohttp.ClientError, TimeoutError, KeyError, ValueError) as error:
        record.error = f"{type(error).__name__}: {error}"
    record.e2e_s = time.perf_counter() - start
    return record


async def load(url: str, prompts: list[list[int]], args: argparse.Namespace) -> tuple[list[Record], float]:
    """Send all prompts; the records and the seconds from the first request to the last answer."""
    slots = asyncio.Semaphore(args.max_concurrency)
    generator = random.Random(0)
    timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)
    connector = aiohttp.TCPConnector(limit=args.max_concurrency)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:

        async def limited(prompt: list[int]) -> Record:
            async with slots:
                body = {
                    "prompt": prompt,
                    "max_tokens": args.output_len,
                    "temperature": 0,
                    "ignore_eos": True,
                    "stream": True,
                    "stream_options": {"include_usage": True},
                }
                return await one_request(session, url, body)

        start = time.perf_counter()
        tasks = []
        for prompt in prompts:
            tasks.append(asyncio.create_task(limited(prompt)))
            if args.request_rate:
                await asyncio.sleep(generator.expovariate(args.request_rate))
        records = await asyncio.gather(*tasks)
        return list(records), time.perf_counter() - start


def summarise(records: list[Record], seconds: float) -> dict[str, Any]:
    """Throughput and latencies of the requests that succeeded."""
    good = [record for record in records if record.error is None]
    num_tokens = sum(record.num_output_tokens for record in good)
    gaps = [gap for record in good for gap in record.itl_s]
    per_token = [sum(r.itl_s) / (r.num_output_tokens - 1) for r in good if r.num_output_tokens > 1]
    summary: dict[str, Any] = {
        "completed": len(good),
        "failed": len(records) - len(good),
        "duration_s": round(seconds, 3),
        "request_s": round(len(good) / seconds, 2),
        "output_tok_s": round(num_tokens / seconds, 1),
    }
    series = {"ttft": [r.ttft_s for r in good], "tpot": per_token, "itl": gaps, "e2e": [r.e2e_s for r in good]}
    for name, values in series.items():
        for percent in (50, 99):
            summary[f"{name}_ms_p{percent}"] = round(1000 * percentile(values, percent), 2)
    errors = [record.error for record in records if record.error]
    if errors:
        summary["first_error"] = errors[0]
    return summary


def peer_tok_s(prompts: list[list[int]], args: argparse.Namespace) -> float:
    """Output tokens per second of transformers on the same prompts, in batches of max_concurrency."""
    peer = TransformersPeer(args.model, getattr(torch, args.dtype))
    batches = [prompts[i : i + args.max_concurrency] for i in range(0, len(prompts), args.max_concurrency)]
    peer.generate(batches[0], 2)

    def run() -> None:
        for batch in batches:
            peer.generate(batch, args.output_len)

    num_tokens: int = len(prompts) * args.output_len
    return num_tokens / timed(run)


def main() -> None:
    """Measure and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", help="a server that runs already; without it one is started")
    parser.add_argument("--model", default="models/galley-tiny", help="model directory")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--num-requests", type=int, default=64)
    parser.add_argument("--max-concurrency", type=int, default=8)
    parser.add_argument("--request-rate", type=float, default=0.0, help="requests per second; 0 is no limit")
    parser.add_argument("--input-len", type=int, default=128)
    parser.add_argument("--output-len", type=int, default=128)
    parser.add_argument("--vocab-size", type=int, help="ids of the prompts lie below it; from config.json if not given")
    parser.add_argument("--skip-peer", action="store_true", help="do not measure transformers")
    args = parser.parse_args()
    vocab_size = args.vocab_size or json.loads((Path(args.model) / "config.json").read_text())["vocab_size"]
    prompts = random_prompts(args.num_requests, args.input_len, vocab_size)
    with contextlib.nullcontext(args.url) if args.url else server(args) as url:
        # The warm-up has prompts of its own, so that the prefix cache knows none of the measured ones.
        asyncio.run(load(url, random_prompts(args.max_concurrency, args.input_len, vocab_size, seed=1), args))
        records, seconds = asyncio.run(load(url, prompts, args))
    result = summarise(records, seconds)
    if not args.skip_peer:
        result["transformers_output_tok_s"] = round(peer_tok_s(prompts, args), 1)
        result["ratio"] = round(result["output_tok_s"] / result["transformers_output_tok_s"], 2)
    for key, value in result.items():
        say(f"{key:28} {value}")
    finish({"benchmark": "serving", **vars(args), "results": result, "machine": machine()})


if __name__ == "__main__":
    main()
