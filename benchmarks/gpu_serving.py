"""What does HTTP cost on the GPU? `serve` end to end, beside the offline figure of the same traffic.

    python benchmarks/gpu_serving.py                              # the 8B and the 0.6B shape; 1, 32 and 256 streams
    python benchmarks/gpu_serving.py --shapes llama-3.1-8b --streams 256
    python benchmarks/gpu_serving.py --smoke                      # proves the script, on the CPU

All streams are sent at once, each with a prompt of random token ids and exactly --output-len greedy tokens, read to
the end; the figure is the median of --repeats. Offline, `LLM.generate` gets the same prompts with the same settings.
The load comes from several processes (`benchmarks/gpu_client.py`), since one Python would be busy with reading alone.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that the script runs from a checkout that is not installed

from benchmarks.common import percentile, random_prompts, say
from benchmarks.gpu_models import SHAPES, GpuShape, make_model_dir
from benchmarks.gpu_rows import ROOT, Row, Rows, add_common_arguments, bar, environment, needs_gpu, run_child

_MAX_COST = 0.10
_TIMEOUT_S = 310.0  # of a client, whose requests end before
_SETTLE_S = 0.2  # until every client has read when to start
_LEAST_S = 40.0


def send(url: str, prompts: list[list[int]], output_len: int, num_processes: int) -> Row:
    """All prompts at once: output tokens per second, and times to the first piece. Raises RuntimeError."""
    num_processes = min(num_processes, len(prompts))
    clients = [_client() for _ in range(num_processes)]
    try:
        for i, client in enumerate(clients):
            _write(client, json.dumps({"url": url, "prompts": prompts[i::num_processes], "output_len": output_len}))
        for client in clients:
            assert client.stdout is not None
            client.stdout.readline()  # it is ready
        start_at = time.monotonic() + _SETTLE_S
        for client in clients:
            _write(client, str(start_at))
        written = [client.communicate(timeout=_TIMEOUT_S)[0] for client in clients]
    finally:
        for client in clients:
            client.kill()
    if any(client.returncode for client in clients):
        raise RuntimeError("a client failed")
    parts = [json.loads(text.splitlines()[-1]) for text in written]
    streams = [stream for part in parts for stream in part["streams"]]
    seconds = max(part["ended"] for part in parts) - min(part["started"] for part in parts)
    num_tokens = sum(stream[2] for stream in streams)
    if num_tokens != output_len * len(prompts):
        raise RuntimeError(f"{num_tokens} tokens came, {output_len * len(prompts)} were asked for")
    # From each stream's first piece to its last: what a reader sees of the pace.
    pace = [1e3 * (e2e - first) / max(1, count - 1) for first, e2e, count in streams]
    firsts = [1e3 * stream[0] for stream in streams]
    return {
        "output_tok_s": num_tokens / seconds, "seconds": seconds, "first_ms_p50": percentile(firsts, 50),
        "first_ms_p99": percentile(firsts, 99), "token_ms_p50": percentile(pace, 50),
    }  # fmt: skip


def _client() -> "subprocess.Popen[str]":
    command = [sys.executable, str(ROOT / "benchmarks/gpu_client.py")]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def _write(client: "subprocess.Popen[str]", line: str) -> None:
    assert client.stdin is not None
    client.stdin.write(line + "\n")
    client.stdin.flush()


def flags_of(model_dir: Path, settings: dict[str, Any], num_workers: int) -> list[str]:
    """Our settings as `serve` takes them."""
    flags = ["--model", str(model_dir), "--num-workers", str(num_workers), "--log-level", "info"]
    for name, value in settings.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            flags += [f"--{flag}", str(value)]
    return flags


def prompts_of(shape: GpuShape, streams: int, repeat: int, args: argparse.Namespace) -> list[list[int]]:
    """The prompts of one repeat: no two alike, the same over HTTP and offline."""
    return random_prompts(streams, args.input_len, shape.vocab_size, seed=1000 * repeat + streams)


def over_http(rows: Rows, shape: GpuShape, args: argparse.Namespace) -> dict[int, Row]:
    """{streams: the median repeat} of one server."""
    from benchmarks.gpu_engine import settings_for
    from benchmarks.serving import started

    found: dict[int, Row] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = make_model_dir(shape, Path(folder) / shape.name)
        flags = flags_of(path, settings_for(shape, smoke=args.smoke), args.num_workers)
        with started(flags, max(1.0, rows.left_s)) as url:
            for streams in args.streams:
                send(url, prompts_of(shape, streams, 99, args), min(16, args.output_len), args.clients)  # warms up
                runs = [
                    send(url, prompts_of(shape, streams, repeat, args), args.output_len, args.clients)
                    for repeat in range(args.repeats)
                ]
                found[streams] = sorted(runs, key=lambda run: run["output_tok_s"])[len(runs) // 2]
                rows.add({"name": f"http {shape.name}, {streams} streams", **found[streams]})
    return found


def child_offline(args: argparse.Namespace) -> int:
    """The same traffic on LLM, in this process: one row per number of streams."""
    from benchmarks.gpu_engine import settings_for
    from engine import LLM, SamplingParams
    from engine.llm import TokensPrompt

    shape = SHAPES[args.shapes[0]]
    with tempfile.TemporaryDirectory() as folder:
        path = make_model_dir(shape, Path(folder) / shape.name)
        llm = LLM(str(path), **settings_for(shape, smoke=args.smoke))

    def seconds(streams: int, repeat: int, length: int) -> float:
        prompts: list[TokensPrompt] = [{"prompt_token_ids": ids} for ids in prompts_of(shape, streams, repeat, args)]
        started = time.perf_counter()
        llm.generate(prompts, SamplingParams(temperature=0, max_tokens=length, ignore_eos=True), use_tqdm=False)
        return time.perf_counter() - started

    rows = Rows("gpu_serving", args)
    for streams in args.streams:
        seconds(streams, 99, min(16, args.output_len))
        median = statistics.median(seconds(streams, repeat, args.output_len) for repeat in range(args.repeats))
        rate = streams * args.output_len / median
        rows.add({"name": f"offline {shape.name}, {streams} streams", "streams": streams, "output_tok_s": rate})
    return 0


def measure(rows: Rows, shape: GpuShape, args: argparse.Namespace) -> list[Row]:
    """HTTP, then offline; what HTTP costs."""
    found = over_http(rows, shape, args)
    command = [__file__, "--child", "offline", "--shapes", shape.name, "--output-len", str(args.output_len)]
    command += ["--input-len", str(args.input_len), "--repeats", str(args.repeats)]
    command += ["--streams", *map(str, args.streams), *(["--smoke"] if args.smoke else [])]
    offline, error = run_child(command, rows.left_s, on_row=rows.add)
    result = []
    for row in offline:
        http = found.get(row["streams"])
        if http is not None:
            cost = 1 - http["output_tok_s"] / row["output_tok_s"]
            result.append({"name": f"cost of http, {shape.name}, {row['streams']} streams", "cost": cost})
            result[-1] |= bar(cost, _MAX_COST)
    if error is not None:
        result.append({"name": f"offline {shape.name}", "failed": error})
    return result


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["llama-3.1-8b", "qwen3-0.6b"])
    parser.add_argument("--streams", nargs="+", type=int, default=[1, 32, 256])
    parser.add_argument("--input-len", type=int, default=256)
    parser.add_argument("--output-len", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--num-workers", type=int, default=6, help="web workers (default: 6)")
    parser.add_argument("--clients", type=int, default=4, help="processes that send and read (default: 4)")
    parser.add_argument("--child", choices=["offline"], help=argparse.SUPPRESS)
    add_common_arguments(parser, 300)
    args = parser.parse_args()
    if args.smoke:
        args.shapes, args.streams, args.num_workers, args.clients = ["smoke"], [1, 4], 1, 2
        args.input_len, args.output_len, args.repeats = 16, 12, 1
    return args


def main() -> int:
    """Every shape."""
    args = _parse()
    if args.child:
        return child_offline(args)
    needs_gpu(smoke=args.smoke)
    rows = Rows("gpu_serving", args)
    for name in args.shapes:
        say(name)
        rows.attempt(name, 5.0 if args.smoke else _LEAST_S, lambda name=name: measure(rows, SHAPES[name], args))  # type: ignore[misc]
    return rows.finish()


if __name__ == "__main__":
    sys.exit(main())
