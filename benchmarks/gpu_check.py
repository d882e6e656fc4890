"""Is everything right and fast on the GPU of this machine? What `make gpu-check` runs.

    python benchmarks/gpu_check.py --output result.json                       # everything, within 26 minutes
    python benchmarks/gpu_check.py --parts kernels-tests engine-tests --limit-s 420
    python benchmarks/gpu_check.py --smoke                                    # proves the script without a GPU

The parts, in their order: the tests of the kernels and of the engine, the kernels' figures, and the engine's: its
steps, a batch job, serving and a cold start. Each is a script of its own that has its share of --limit-s and of what
earlier parts left; one that fails or is cut short does not stop the others, and the rows that it printed count.

The kernels' parts need torch 2.11, triton 3.6, numpy and pytest; the others what the engine needs, from this machine or
from `make gpu-wheels`. Ends with 0 if nothing failed, 1 if something did, and 2, after one line, where there is no GPU.
A bar that is missed is told, and fails nothing.
"""

import argparse
import json
import os
import shutil
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

try:
    import torch
except ImportError:
    print("gpu_check needs torch 2.11 or newer; `make gpu-check GPU_PYTHON=...` names the Python", file=sys.stderr)
    raise SystemExit(2) from None

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # so that the script runs from a checkout that is not installed

from benchmarks import gpu_wheels
from benchmarks.common import finish, say
from benchmarks.gpu_rows import Row, environment, in_short, run_child
from benchmarks.gpu_tests import TestRun, engine_jobs, kernel_jobs, run_tests, test_environment
from benchmarks.gpu_timing import gpu_machine

# Each part's share of the time, in seconds of a whole run: what is left over goes to those that follow.
PARTS = {
    "kernels-tests": 200,
    "engine-tests": 240,
    "kernels": 130,
    "steps": 410,
    "offline": 270,
    "serving": 150,
    "start": 150,
}
_SCRIPTS = {part: f"benchmarks/gpu_{part}.py" for part in ("steps", "offline", "serving", "start")}
# Kept of each part's time for the ends of processes and a measurement that has just begun.
_RESERVE_S = 15.0
_KERNELS_RESERVE_S = 40.0
# More at a time would fill the GPU's memory with contexts and graphs.
_ENGINE_PROCESSES = 8


def run_kernels(limit_s: float, extra: list[str]) -> dict[str, Any]:
    """What `gpu_kernels.py` says in its last line; `error` where there is none.

    A kernel that breaks the GPU's context ends that process; another goes on with what comes after it.
    """
    end = time.monotonic() + limit_s
    result = _run_kernels_once(limit_s, extra)
    while "error" not in result and _is_broken(result) and end - time.monotonic() > 2 * _KERNELS_RESERVE_S:
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
    script = ["benchmarks/gpu_kernels.py", f"--limit-s={max(1.0, limit_s - _KERNELS_RESERVE_S):.0f}", *extra]
    rows, error = run_child(script, limit_s)
    # It ends with 1 where a kernel failed, and says so in its last line.
    if rows and "results" in rows[-1]:
        return rows[-1]
    return {"results": {"kernels": [], "not_measured": []}, "error": error or "it printed no result"}


class Check:
    """One run of the parts that were asked for."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.result: dict[str, Any] = gpu_machine()
        self.failures: list[str] = []
        self._args = args
        self._end = time.monotonic() + args.limit_s
        self._left = [part for part in PARTS if part in args.parts]

    def run(self) -> None:
        """Every part, and after each the result so far in --output."""
        site = None
        if any(part not in ("kernels-tests", "kernels") for part in self._left):
            site = gpu_wheels.prepare()
        while self._left:
            part = self._left[0]
            weight = PARTS[part] / sum(PARTS[left] for left in self._left)
            limit_s = (self._end - time.monotonic()) * weight
            say(f"== {part}: {limit_s:.0f} s at most")
            try:
                self._run_part(part, limit_s, site)
            except Exception as error:  # noqa: BLE001 - whatever is wrong with one part, the others run
                self._fail(part, in_short(error))
            self._left.pop(0)
            if self._args.output:
                self._args.output.write_text(json.dumps(self.result) + "\n")

    def _fail(self, part: str, why: str) -> None:
        say(f"{part}: {why}")
        self.result.setdefault("errors", {})[part] = why
        self.failures.append(part)

    def _run_part(self, part: str, limit_s: float, site: Path | None) -> None:
        if part == "kernels-tests":
            # As ever: without the packages of the engine, and without the tests' own root.
            run = TestRun(kernel_jobs(smoke=self._args.smoke), self._args.tests)
            self._take_tests("tests", run_tests(limit_s - _RESERVE_S, run, test_environment()))
        elif part == "kernels":
            self._take_kernels(run_kernels(limit_s, self._options(only=True)))
        else:
            modules = gpu_wheels.ENGINE_MODULES + (gpu_wheels.SERVING_MODULES if part == "serving" else ())
            absent = gpu_wheels.missing(modules, site)
            if absent:
                self._fail(part, f"{', '.join(absent)} not installed: {gpu_wheels.HOW}")
                return
            path = os.pathsep.join(filter(None, (str(ROOT), str(site or ""), os.environ.get("PYTHONPATH"))))
            if part == "engine-tests":
                device = "cpu" if self._args.smoke else "cuda"
                jobs = engine_jobs(smoke=self._args.smoke)
                run = TestRun(jobs, self._args.tests, device=device, num_processes=_ENGINE_PROCESSES)
                self._take_tests(
                    "engine_tests", run_tests(limit_s - _RESERVE_S, run, test_environment(PYTHONPATH=path))
                )
            else:
                command = [_SCRIPTS[part], f"--limit-s={max(1.0, limit_s - _RESERVE_S):.0f}", *self._options()]
                self._take_rows(part, *run_child(command, limit_s, env=environment(PYTHONPATH=path)))

    def _options(self, *, only: bool = False) -> list[str]:
        words = ["--only", *self._args.only] if only and self._args.only else []
        return [*(["--smoke"] if self._args.smoke else []), *words]

    def _take_tests(self, name: str, counts: dict[str, Any]) -> None:
        self.result[name] = counts
        if counts["failed"] or counts["errors"]:
            self.failures.append(name)

    def _take_kernels(self, found: dict[str, Any]) -> None:
        rows = found["results"]["kernels"]
        self.result |= found["results"]
        num_failed = sum("failed" in row for row in rows)
        num_missed = sum(row.get("met") is False for row in rows)
        say(f"kernels: {len(rows) - num_failed} measured, {num_failed} failed, {num_missed} below their bars")
        if "error" in found:
            self._fail("kernels", found["error"])
        elif not rows or not all(row.get("right", False) for row in rows):
            self.failures.append("kernels")

    def _take_rows(self, part: str, rows: list[Row], error: str | None) -> None:
        """The rows of a script that ran to its end are also in its last line."""
        if rows and "benchmark" in rows[-1]:
            rows = rows[-1]["results"]
        elif error is not None:
            self._fail(part, error)
        self.result[part] = rows
        failed = [row for row in rows if "failed" in row]
        num_missed = sum(row.get("met") is False for row in rows)
        say(f"{part}: {len(rows)} rows, {len(failed)} failed, {num_missed} off their bars")
        if failed or not rows:
            self.failures.append(part)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="which; all if not given")
    parser.add_argument("--limit-s", type=float, default=1560, help="of everything together (default: 1560)")
    parser.add_argument("--output", type=Path, help="also write the last line to this file, after every part")
    parser.add_argument("--tests", default="", metavar="EXPRESSION", help="only tests that pytest's -k would take")
    parser.add_argument("--only", nargs="+", default=[], help="words; measure kernels with one of them in their name")
    parser.add_argument("--smoke", action="store_true", help="few tests, and tiny sizes; no GPU")
    return parser.parse_args()


def missing_for_triton() -> str:
    """What triton does not find for building its launchers in C; nothing where all is there."""
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "C compiler"
    # As triton looks for it: Debian's own scheme names a folder that is not there.
    scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")
    header = Path(sysconfig.get_paths(scheme)["include"]) / "Python.h"
    return "" if header.exists() else str(header)


def main() -> int:
    """Run the parts, and print one line of all."""
    args = _parse()
    if not args.smoke and not torch.cuda.is_available():
        say("no GPU: torch.cuda.is_available() is false (--smoke proves the script without one)")
        return 2
    if args.output:
        # Now, so that a folder that cannot be made ends this before the minutes of measuring and not after them.
        args.output.parent.mkdir(parents=True, exist_ok=True)
    if not args.smoke and (absent := missing_for_triton()):
        say(f"kernels may all fail to launch: triton builds its launchers on this machine, which has no {absent}")
    check = Check(args)
    check.run()
    if check.failures:
        say(f"something failed in: {', '.join(dict.fromkeys(check.failures))}")
    finish(check.result)
    return 1 if check.failures else 0


if __name__ == "__main__":
    sys.exit(main())
