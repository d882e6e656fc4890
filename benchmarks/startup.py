"""How long does `serve` take from its start to /ping 200?

    python benchmarks/startup.py --model models/galley-tiny

Each of --repeats starts is a new supervisor, engine and workers; the files are in the page cache after the first.
For comparison, the seconds that a fresh interpreter takes to import torch, which every server of a torch model must do.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that the script runs from a checkout that is not installed

from benchmarks.common import finish, machine, say, timed
from benchmarks.serving import server


def seconds_to_ready(args: argparse.Namespace) -> float:
    """One start."""
    start = time.perf_counter()
    with server(args):
        return time.perf_counter() - start


def main() -> None:
    """Measure and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/galley-tiny", help="model directory")
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16"], default="auto")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    ready = [seconds_to_ready(args) for _ in range(args.repeats)]
    imports = [
        timed(lambda: subprocess.run([sys.executable, "-c", "import torch"], check=True)) for _ in range(args.repeats)
    ]
    result = {"ready_s": round(statistics.median(ready), 2), "import_torch_s": round(statistics.median(imports), 2)}
    for name, seconds in result.items():
        say(f"{name:16} {seconds}")
    finish({"benchmark": "startup", **vars(args), "results": result, "machine": machine()})


if __name__ == "__main__":
    main()
