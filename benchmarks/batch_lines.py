"""How fast is a batch of JSON lines through /invocations, beside the offline API on the same prompts?

    python benchmarks/batch_lines.py --model models/galley-tiny

One POST of --num-records lines, a completion each, to a `serve` that this script starts; and `LLM.generate` of the same
prompts in a process of its own. They take turns, and the one that waits is stopped (SIGSTOP), so that it costs nothing;
the figure is the median of --repeats. Before each round the prompts change, so that no prefix cache knows them.
"""

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # so that the script runs from a checkout that is not installed

import psutil

from benchmarks.common import finish, machine, say
from benchmarks.serving import server

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_TIMEOUT_S = 1800


def texts(num_records: int, num_words: int, seed: int) -> list[str]:
    """Prompts of made-up words."""
    generator = random.Random(seed)
    return [" ".join("".join(generator.choices(_LETTERS, k=4)) for _ in range(num_words)) for _ in range(num_records)]


def offline(args: argparse.Namespace) -> None:
    """The peer: a round of prompts per line of stdin, the seconds that it took per line of stdout."""
    from engine import LLM, SamplingParams

    llm = LLM(model=args.model, dtype=args.dtype)
    print("ready", flush=True)
    for line in sys.stdin:
        prompts = json.loads(line)
        params = SamplingParams(temperature=0, max_tokens=args.output_len, ignore_eos=True)
        start = time.perf_counter()
        results = llm.generate(prompts, params, use_tqdm=False)
        seconds = time.perf_counter() - start
        num_tokens = sum(len(result.outputs[0].token_ids) for result in results)
        assert num_tokens == len(prompts) * args.output_len
        print(json.dumps({"seconds": seconds, "first": results[0].outputs[0].text}), flush=True)


def invoke(url: str, prompts: list[str], args: argparse.Namespace) -> tuple[float, str]:
    """Seconds of one batch through /invocations, and the first text."""
    fields = {"max_tokens": args.output_len, "temperature": 0, "ignore_eos": True}
    body = "".join(json.dumps({"prompt": prompt, **fields}) + "\n" for prompt in prompts).encode()
    request = urllib.request.Request(f"{url}/invocations", body, {"Content-Type": "application/jsonlines"})
    start = time.perf_counter()
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
        lines = response.read().splitlines()
    seconds = time.perf_counter() - start
    answers = [json.loads(line) for line in lines]
    num_tokens = sum(answer["usage"]["completion_tokens"] for answer in answers)
    assert num_tokens == len(prompts) * args.output_len
    return seconds, answers[0]["choices"][0]["text"]


class Family:
    """Our child of this command line and all its descendants, which run or stand still together."""

    def __init__(self, word: str) -> None:
        children = psutil.Process().children()
        [self._root] = [child for child in children if word in " ".join(child.cmdline())]

    def signal(self, number: signal.Signals) -> None:
        """Send it to all of them."""
        for process in [self._root, *self._root.children(recursive=True)]:
            process.send_signal(number)


def measure(url: str, peer: "subprocess.Popen[str]", args: argparse.Namespace) -> dict[str, Any]:
    """Rounds of both in turns; the first one only warms up."""
    assert peer.stdin is not None
    assert peer.stdout is not None
    peer.stdout.readline()
    serving, beside = Family("serve"), Family("--offline")
    seconds: dict[str, list[float]] = {"invocations": [], "offline": []}
    num_same = 0
    for turn in range(args.repeats + 1):
        prompts = texts(args.num_records, args.input_words, seed=turn)
        beside.signal(signal.SIGSTOP)
        ours, our_text = invoke(url, prompts, args)
        beside.signal(signal.SIGCONT)
        serving.signal(signal.SIGSTOP)
        peer.stdin.write(json.dumps(prompts) + "\n")
        peer.stdin.flush()
        theirs = json.loads(peer.stdout.readline())
        serving.signal(signal.SIGCONT)
        time.sleep(2)  # signs of life, and what the stop has left waiting
        if turn:
            seconds["invocations"].append(ours)
            seconds["offline"].append(theirs["seconds"])
            num_same += our_text == theirs["first"]
        say(f"round {turn}: /invocations {ours:.2f} s, offline {theirs['seconds']:.2f} s")
    num_tokens = args.num_records * args.output_len
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        **{f"{name}_tok_s": round(num_tokens / median, 1) for name, median in medians.items()},
        "ratio": round(medians["offline"] / medians["invocations"], 3),
        "ratio_by_round": [round(b / a, 3) for a, b in zip(seconds["invocations"], seconds["offline"], strict=True)],
        "same_first_text": f"{num_same}/{args.repeats}",
    }


def main() -> None:
    """Measure and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/galley-tiny", help="model directory")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--num-records", type=int, default=1000)
    parser.add_argument("--input-words", type=int, default=32)
    parser.add_argument("--output-len", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--offline", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.offline:
        offline(args)
        return
    own = [sys.executable, __file__, "--offline", "--model", args.model, "--dtype", args.dtype]
    own += ["--output-len", str(args.output_len)]
    # A stopped server is not a hung one.
    os.environ["SM_GALLEY_STALL_LIMIT_S"] = str(_TIMEOUT_S)
    with server(args) as url:
        peer = subprocess.Popen(own, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            result = measure(url, peer, args)
        finally:
            peer.kill()
    for key, value in result.items():
        say(f"{key:28} {value}")
    finish({"benchmark": "batch_lines", **vars(args), "results": result, "machine": machine()})


if __name__ == "__main__":
    main()
