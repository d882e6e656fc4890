"""Is everything right and fast on the GPU of this machine? What `make gpu-check` runs.

    python benchmarks/gpu_check.py --output result.json       # within 8 minutes
    python benchmarks/gpu_check.py --smoke                    # proves the script without a GPU, in Triton's interpreter

First the tests of `tests/kernels/gpu` and `tests/gpu`, then `benchmarks/gpu_kernels.py` with the time that is left.
Needs torch 2.11, triton 3.6, numpy and pytest; galley itself need not be installed. Ends with 0 if nothing failed, 1 if
something did, and 2, after one line, where there is no GPU. A bar that is missed is told, and fails nothing.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

try:
    import torch
except ImportError:
    print("gpu_check needs torch 2.11 or newer; `make gpu-check GPU_PYTHON=...` names the Python", file=sys.stderr)
    raise SystemExit(2) from None

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # so that the script runs from a checkout that is not installed

from benchmarks.common import finish, say
from benchmarks.gpu_timing import gpu_machine

# Of the limit: what the tests may take, and what is kept for the last measurement and the ends of processes.
_TESTS_SHARE = 0.6
_RESERVE_S = 40.0
_NO_TESTS_CHOSEN = 5  # pytest's exit code, also for a file that skips itself for want of a package
# What a machine's image may set, and what would make of torch's float32 products, the references, less than that.
_NOT_INHERITED = {"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "NVIDIA_TF32_OVERRIDE", "TRITON_INTERPRET"}


def pytest_jobs(*, smoke: bool) -> list[str]:
    """What each process of pytest runs. Most of the time goes into compiling kernels, one after the other in a process.

    A job is a file, so that a kernel that breaks the GPU's context fails the rest of its own file alone. Those of
    `tests/gpu` take the longest, and are the first; side by side they need some 60 GB at most.
    """
    folders = ("tests/gpu", "tests/kernels/gpu")
    every = [
        path.relative_to(ROOT).as_posix() for folder in folders for path in sorted((ROOT / folder).glob("test_*.py"))
    ]
    return [name for name in every if not smoke or name.startswith("tests/gpu/") or name.endswith("/test_norm.py")]


def pytest_command(report: Path, job: str, words: str) -> list[str]:
    """The command that runs these tests without the project's settings, which name plugins that may not be there.

    The root of the tests is left out of the search for conftest.py: what it has there needs hypothesis.
    """
    command = [sys.executable, "-m", "pytest", "-c", os.devnull, f"--rootdir={ROOT}"]
    command += [f"--confcutdir={ROOT}/tests/kernels", "--import-mode=importlib", "-p", "no:cacheprovider"]
    command += ["-q", "-ra", "--tb=short", "--durations=5", f"--junitxml={report}"]
    return [*command, *(["-k", words] if words else []), job]


def run_tests(limit_s: float, jobs: list[str], words: str) -> dict[str, Any]:
    """{passed, failed, skipped, seconds, failures, errors}: the failed tests' names, and jobs that could not tell."""
    started = time.monotonic()
    with ThreadPoolExecutor(max(1, min(12, (os.cpu_count() or 1) * 3 // 4))) as pool:
        left = [pool.submit(run_job, job, started + limit_s, words) for job in jobs]
        results = [future.result() for future in left]
    counts: dict[str, Any] = {
        key: sum((result[key] for result in results), type(results[0][key])())
        for key in ("passed", "failed", "skipped", "failures", "errors")
    }
    return {**counts, "seconds": round(time.monotonic() - started, 1)}


def run_job(job: str, end: float, words: str) -> dict[str, Any]:
    """As `run_tests`, of one process, which is cut short at the monotonic time `end`."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        output, code = _run(pytest_command(report, job, words), end - time.monotonic())
        counts = _counted(report) if report.exists() else {"passed": 0, "failed": 0, "skipped": 0, "failures": []}
    errors = []
    if code is None:
        # A report is written at the end: of tests that were cut short only the dots tell.
        dots = "".join(re.findall(r"^([.FEsxX]+)(?: +\[|$)", output, re.MULTILINE))
        counts |= {"passed": dots.count("."), "failed": dots.count("F") + dots.count("E"), "skipped": dots.count("s")}
        errors = [f"{job}: not done in time"]
    elif code not in (0, 1) and not (code == _NO_TESTS_CHOSEN and (words or counts["skipped"])):
        errors = [f"{job}: pytest ended with {code}: {output[-500:]}"]
    return {**counts, "errors": errors}


def _counted(report: Path) -> dict[str, Any]:
    cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    failures = [
        f"{case.get('classname')}::{case.get('name')}"
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    ]
    num_skipped = sum(case.find("skipped") is not None for case in cases)
    num_passed = len(cases) - num_skipped - len(failures)
    return {"passed": num_passed, "failed": len(failures), "skipped": num_skipped, "failures": failures}


def run_kernels(limit_s: float, extra: list[str]) -> dict[str, Any]:
    """What `gpu_kernels.py` says in its last line; `error` where there is none.

    A kernel that breaks the GPU's context ends that process; another goes on with what comes after it.
    """
    end = time.monotonic() + limit_s
    result = _run_kernels_once(limit_s, extra)
    while "error" not in result and _is_broken(result) and end - time.monotonic() > 2 * _RESERVE_S:
        left = result["results"]["not_measured"]
        more = _run_kernels_once(end - time.monotonic(), [*extra, "--only", *left])
        rows = [row for row in more["results"]["kernels"] if row["name"] in left]
        if not rows:
            return {**result, "error": more.get("error", "nothing more was measured")}
        left = more["results"]["not_measured"]
        result["results"] |= {"kernels": result["results"]["kernels"] + rows, "not_measured": left}
    return result


def _is_broken(result: dict[str, Any]) -> bool:
    rows, left = result["results"]["kernels"], result["results"]["not_measured"]
    return bool(left and rows and "failed" in rows[-1])


def _run_kernels_once(limit_s: float, extra: list[str]) -> dict[str, Any]:
    script = ["benchmarks/gpu_kernels.py", f"--limit-s={max(1.0, limit_s - _RESERVE_S):.0f}", *extra]
    output, code = _run([sys.executable, *script], limit_s, only_stdout=True)
    try:
        result: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    except (IndexError, ValueError):
        why = f"not done after {limit_s:.0f} s" if code is None else f"ended with {code} and no result"
        return {"results": {"kernels": [], "not_measured": []}, "error": why}
    return result


def _run(command: list[str], limit_s: float, *, only_stdout: bool = False) -> tuple[str, int | None]:
    """(what it wrote, its exit code or None if it took too long); all of that is also shown, on our stderr."""
    # Unbuffered, so that what a process wrote before it was cut short is there to read.
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    kept = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
    environment = {**kept, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    stderr = None if only_stdout else subprocess.STDOUT
    with tempfile.TemporaryFile("w+") as written:
        try:
            code: int | None = subprocess.run(
                command, cwd=ROOT, env=environment, stdout=written, stderr=stderr, timeout=max(1.0, limit_s)
            ).returncode
        except subprocess.TimeoutExpired:
            code = None
        written.seek(0)
        output = written.read()
    if not only_stdout:
        say(output)
    return output, code


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit-s", type=float, default=480, help="of everything together (default: 480)")
    parser.add_argument("--output", type=Path, help="also write the last line to this file")
    parser.add_argument("--tests", default="", metavar="EXPRESSION", help="only tests that pytest's -k would take")
    parser.add_argument("--only", nargs="+", default=[], help="words; measure kernels with one of them in their name")
    parser.add_argument("--smoke", action="store_true", help="the tests of the norm, and tiny sizes; no GPU")
    return parser.parse_args()


def main() -> int:
    """Test, measure, and print one line of both."""
    args = _parse()
    if not args.smoke and not torch.cuda.is_available():
        say("no GPU: torch.cuda.is_available() is false (--smoke proves the script without one)")
        return 2
    if args.output:
        # Now, so that a folder that cannot be made ends this before the minutes of measuring and not after them.
        args.output.parent.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + args.limit_s
    tests = run_tests(_TESTS_SHARE * args.limit_s, pytest_jobs(smoke=args.smoke), args.tests)
    extra = [*(["--smoke"] if args.smoke else []), *(["--only", *args.only] if args.only else [])]
    kernels = run_kernels(end - time.monotonic(), extra)
    rows = kernels["results"]["kernels"]
    result = {**gpu_machine(), "tests": tests, **kernels["results"]}
    if "error" in kernels:
        result["error"] = kernels["error"]
    if args.output:
        args.output.write_text(json.dumps(result) + "\n")
    num_missed, num_failed = sum(row.get("met") is False for row in rows), sum("failed" in row for row in rows)
    say(f"tests: {tests['passed']} passed, {tests['failed']} failed, {tests['skipped']} skipped, {tests['seconds']} s")
    for line in (*tests["failures"], *tests["errors"]):
        say(f"  {line}")
    say(f"kernels: {len(rows) - num_failed} measured, {num_failed} failed, {num_missed} below their bars")
    finish(result)
    is_right = not tests["failed"] and not tests["errors"] and "error" not in kernels
    return 0 if is_right and all(row.get("right", False) for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
