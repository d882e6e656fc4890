"""How fast is this engine on a CPU beside vLLM's CPU build and transformers, on one 0.6B model of random weights?

    python benchmarks/cpu_peers.py                                  # makes vLLM's virtual environment when first run
    python benchmarks/cpu_peers.py --vllm-python VENV/bin/python --model DIR --quantization int8

The model has Qwen3-0.6B's shape in bfloat16. Each engine runs in processes of its own, one after the other, with every
core: fresh ones to the first token of a prompt, and one that does all workloads. No prompt is ever repeated, so that no
prefix cache helps but where it is meant to: in `shared`, whose prefix the warm-up has computed (`generate` has no such
cache). --rounds goes through all engines again; a figure is the median over rounds of the medians.

vLLM is the peer that counts: if it does not run, the exit status is 1. It runs as it comes, which keeps one core for
its scheduler, and as `vllm_tuned`, with every core and what its documentation advises; the better of both counts.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that the script runs from a checkout that is not installed

from benchmarks.common import finish, machine, random_prompts, say
from benchmarks.peer_process import Candidate, PeerFailed, run_candidate
from benchmarks.peer_results import assess, print_tables
from benchmarks.peer_venv import TORCH_CPU_INDEX, make_vllm_venv
from benchmarks.random_model import add_shape_arguments, make_random_model, shape_from

_HERE = Path(__file__).parent
_MAX_MODEL_LEN = 2048
_KV_CACHE_GIB = 4
_SINGLE_WARM_UP_LEN = 8
_BATCH_WARM_UP_LEN = 4
_BUSY_LOAD = 0.5  # of the last minute, before we begin: nothing else should run
_STARTS = 3  # fresh processes to a first token in each round; of vLLM, whose take minutes, one


def workloads(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """What every engine does in one round; other prompts in each. `single_first` is `single` up to its first token."""
    generator = random.Random(seed)

    def prompts(num_prompts: int, length: int) -> list[list[int]]:
        return random_prompts(num_prompts, length, args.vocab_size, generator.getrandbits(32))

    def workload(num_prompts: int, input_len: int, output_len: int, prefix: list[int]) -> dict[str, Any]:
        warm_up_len = _SINGLE_WARM_UP_LEN if num_prompts == 1 else _BATCH_WARM_UP_LEN
        batches = [[prefix + own for own in prompts(num_prompts, input_len)] for _ in range(args.repeats + 1)]
        return {
            "warm_up": batches[0],
            "warm_up_len": min(output_len, warm_up_len),
            "batches": batches[1:],
            "output_len": output_len,
        }

    prefix = prompts(1, args.prefix_len)[0]
    return {
        "single": workload(1, args.input_len, args.single_output_len, []),
        "single_first": workload(1, args.input_len, 1, []),
        "batch": workload(args.num_prompts, args.input_len, args.output_len, []),
        "shared": workload(args.num_prompts, args.suffix_len, args.output_len, prefix),
    }


def setting(text: str) -> tuple[str, Any]:
    """`key=value`, where the value is JSON if it can be."""
    key, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not key=value")
    with contextlib.suppress(ValueError):
        return key, json.loads(value)
    return key, value


def tuned_vllm_environment(args: argparse.Namespace, vllm_python: Path) -> dict[str, str]:
    """What vLLM's page on CPUs advises: threads bound to cores, Intel's OpenMP, and the system's tcmalloc if any."""
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))[: args.threads]))
    libraries = [
        *sorted(Path("/usr/lib").glob("*/libtcmalloc_minimal.so.4")),
        vllm_python.parent.parent / "lib" / "libiomp5.so",
    ]
    return {
        "VLLM_CPU_OMP_THREADS_BIND": cores if args.vllm_bind == "all" else args.vllm_bind,
        "LD_PRELOAD": ":".join(str(path) for path in libraries if path.exists()),
        **{key: str(value) for key, value in args.vllm_env},
    }


def candidates(args: argparse.Namespace, vllm_python: Path) -> list[Candidate]:
    """The rows, in the order in which they run."""
    threads = {"OMP_NUM_THREADS": str(args.threads)}
    extra: list[dict[str, Any]] = [{"quantization": name} for name in args.quantization]
    extra += [dict(pairs) for pairs in args.galley_settings]
    galley = Candidate(
        name="galley", engine="galley", python=sys.executable, environment=threads, starts=("start",) * _STARTS
    )
    rows = [galley]
    for settings in extra:
        name = "galley_" + "_".join(
            str(value) if key == "quantization" else f"{key}_{value}" for key, value in settings.items()
        )
        rows.append(dataclasses.replace(galley, name=name, settings=settings))
    environment = {"VLLM_CPU_KVCACHE_SPACE": str(_KV_CACHE_GIB), "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    vllm = Candidate(name="vllm", engine="vllm", python=str(vllm_python), environment=environment)
    tuned = environment | tuned_vllm_environment(args, vllm_python)
    # Starts are the default's: they are hardly a matter of threads, and each takes minutes.
    rows += [vllm, dataclasses.replace(vllm, name="vllm_tuned", environment=tuned, starts=())]
    rows += [
        dataclasses.replace(galley, name="transformers", engine="transformers"),
        dataclasses.replace(
            galley, name="transformers_continuous", engine="transformers_continuous", starts=("start",)
        ),
    ]
    return [row for row in rows if row.engine in args.engines]


def read_bandwidth(args: argparse.Namespace) -> float:
    """Bytes per second that all threads together read, from a process of its own."""
    command = [sys.executable, str(_HERE / "bandwidth.py"), "--threads", str(args.threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    return float(json.loads(done.stdout.splitlines()[-1])["results"]["bytes_s"])


def fill_page_cache(args: argparse.Namespace, vllm_python: Path) -> None:
    """Read the weights and import each engine once, so that no start waits for the disk."""
    with (Path(args.model) / "model.safetensors").open("rb") as file:
        while file.read(2**24):
            pass
    for python, modules in ((sys.executable, "transformers, tokenizers, safetensors"), (str(vllm_python), "vllm")):
        done = subprocess.run([python, "-P", "-c", f"import {modules}"], capture_output=True, text=True, timeout=600)
        if done.returncode:
            raise PeerFailed(f"{python} cannot import {modules}: {(done.stderr.splitlines() or ['?'])[-1]}")


def measure(row: Candidate, args: argparse.Namespace, seed: int, work_dir: Path) -> dict[str, Any]:
    """One round of one engine: its starts, then its workloads. Raises PeerFailed."""
    plan = {"model": args.model, "threads": args.threads, "max_model_len": _MAX_MODEL_LEN, "workloads": {}}
    plan["first_token_prompt"] = random_prompts(1, args.input_len, args.vocab_size, seed)[0]
    starts: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(dir=work_dir, ignore_cleanup_errors=True) as cache:
        for kind in row.starts:
            say(f"{row.name}: {kind}")
            _, seconds = run_candidate(row, plan, work_dir, Path(cache), args.timeout)
            starts.setdefault(kind, []).append(seconds)
        say(f"{row.name}: workloads")
        plan |= {"first_token_prompt": None, "workloads": workloads(args, seed)}
        report, _ = run_candidate(row, plan, work_dir, Path(cache), args.timeout)
    return {**report, "starts": starts}


def run_rounds(args: argparse.Namespace, vllm_python: Path, work_dir: Path) -> tuple[dict[str, Any], float]:
    """For every row what each round measured, or the error that ended it; and the best bandwidth of all rounds."""
    rows = candidates(args, vllm_python)
    measured: dict[str, Any] = {
        row.name: {"settings": row.settings, "environment": row.environment, "rounds": []} for row in rows
    }
    bandwidths = []
    for number in range(args.rounds):
        bandwidths.append(read_bandwidth(args))
        for row in rows:
            if "error" in measured[row.name]:
                continue
            try:
                measured[row.name]["rounds"].append(measure(row, args, args.seed + number, work_dir))
                # Hours may pass until the result: what there is shall outlive an interruption.
                (work_dir / "measured.json").write_text(json.dumps({"bandwidths": bandwidths, "rows": measured}))
            except PeerFailed as error:
                if row.name in ("galley", "vllm", "vllm_tuned"):
                    raise
                say(str(error))
                measured[row.name]["error"] = str(error)
    return measured, max(bandwidths)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", default=str(Path(tempfile.gettempdir()) / "galley-random-0.6b"), help="made if absent"
    )
    parser.add_argument("--vllm-python", help="interpreter of a virtual environment that has vLLM; else one is made")
    parser.add_argument(
        "--vllm-venv", default=str(Path.home() / ".cache/galley/vllm-cpu-venv"), help="where it is made"
    )
    parser.add_argument("--torch-index", default=TORCH_CPU_INDEX, help="index of torch's CPU wheels; '' is pip's own")
    parser.add_argument("--vllm-bind", default="all", help="VLLM_CPU_OMP_THREADS_BIND of vllm_tuned; all: every core")
    parser.add_argument("--vllm-env", type=setting, nargs="*", default=[], metavar="KEY=VALUE", help="of vllm_tuned")
    engines = ["galley", "vllm", "transformers", "transformers_continuous"]
    parser.add_argument("--engines", nargs="+", choices=engines, default=engines)
    parser.add_argument(
        "--quantization", nargs="*", choices=["int8", "int4"], default=[], help="a row of ours for each"
    )
    parser.add_argument(
        "--galley-settings",
        type=setting,
        nargs="+",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="one more row of ours with these settings; may be repeated",
    )
    parser.add_argument("--num-prompts", type=int, default=16)
    parser.add_argument("--input-len", type=int, default=128)
    parser.add_argument("--single-output-len", type=int, default=64)
    parser.add_argument("--output-len", type=int, default=128)
    parser.add_argument("--prefix-len", type=int, default=512)
    parser.add_argument("--suffix-len", type=int, default=32, help="each prompt's own tokens after the shared prefix")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--timeout", type=float, default=1800, help="seconds that one process of an engine may take")
    parser.add_argument("--seed", type=int, default=0)
    add_shape_arguments(parser)
    args = parser.parse_args()
    if args.single_output_len < 2:
        parser.error("--single-output-len must be at least 2: decoding is what follows the first token")
    return args


def main() -> None:
    """Measure and print the result; exit status 1 if vLLM did not run."""
    args = parse()
    shape = shape_from(args)
    work_dir = Path(tempfile.mkdtemp(prefix="galley-peers-"))
    say(f"plans, logs and what is measured so far: {work_dir}")
    # Otherwise an engine in a session of its own would live on.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    load = os.getloadavg()[0]
    if load > _BUSY_LOAD:
        say(f"the load average is {load:.1f}: engines that wait for their slowest thread suffer most from company")
    if "vllm" not in args.engines:
        say("vLLM is left out: the exit status will be 1")
    try:
        vllm_python = Path(args.vllm_python or make_vllm_venv(Path(args.vllm_venv), args.torch_index)).absolute()
        make_random_model(Path(args.model), shape, args.seed)
        fill_page_cache(args, vllm_python)
        measured, bandwidth = run_rounds(args, vllm_python, work_dir)
    except RuntimeError as error:
        raise SystemExit(f"no result: {error}") from error
    result = assess(measured, bandwidth, shape, args)
    print_tables(result)
    finish({"benchmark": "cpu_peers", **vars(args), "load_before": load, **result, "machine": machine()})
    if "vllm" not in args.engines:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
