"""Tests on a GPU as `benchmarks/gpu_check.py` runs them: a process for each file, several at a time, counted.

Must not know what is tested.
"""

import dataclasses
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

from benchmarks.common import say
from benchmarks.gpu_rows import ROOT, environment

_NO_TESTS_CHOSEN = 5  # pytest's exit code, also for a file that skips itself for want of a package
_KERNEL_FOLDERS = ("tests/gpu", "tests/kernels/gpu")
_ENGINE_FOLDERS = ("tests/model", "tests/engine", "tests/property")


@dataclasses.dataclass(frozen=True, slots=True)
class TestRun:
    """Which files, and how pytest is to run them.

    needs_hypothesis: the tests' own conftest.py is loaded, with its --device option.
    """

    __test__ = False  # pytest's word for: this is no test

    jobs: list[str]
    words: str = ""
    device: str | None = None
    num_processes: int = 0


def kernel_jobs(*, smoke: bool) -> list[str]:
    """What each process of pytest runs. Most of the time goes into compiling kernels, one after the other in a process.

    A job is a file, so that a kernel that breaks the GPU's context fails the rest of its own file alone. Those of
    `tests/gpu` take the longest, and are the first; side by side they need some 60 GB at most.
    """
    every = [name for folder in _KERNEL_FOLDERS for name in _files(folder) if not _needs_engine(name)]
    return [name for name in every if not smoke or name.startswith("tests/gpu/") or name.endswith("/test_norm.py")]


def engine_jobs(*, smoke: bool) -> list[str]:
    """As `kernel_jobs`, of the engine: first what only a GPU can show."""
    only_there = [name for name in _files("tests/gpu") if _needs_engine(name)]
    every = [*only_there, *(name for folder in _ENGINE_FOLDERS for name in _files(folder))]
    return [name for name in every if not smoke or name in ("tests/gpu/test_engine.py", "tests/model/test_runner.py")]


def _needs_engine(name: str) -> bool:
    """Whether a test file imports the engine, and so its packages."""
    return re.search(r"^(?:from|import) engine\b", (ROOT / name).read_text(), re.MULTILINE) is not None


def _files(folder: str) -> list[str]:
    return [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / folder).glob("test_*.py"))]


def pytest_command(report: Path, job: str, run: TestRun) -> list[str]:
    """The command that runs these tests without the project's settings, which name plugins that may not be there.

    Without a device the root of the tests is left out of the search for conftest.py: what is there needs hypothesis.
    """
    command = [sys.executable, "-m", "pytest", "-c", os.devnull, f"--rootdir={ROOT}"]
    command += [f"--confcutdir={ROOT / 'tests' if run.device else ROOT / 'tests/kernels'}"]
    command += ["--import-mode=importlib", "-p", "no:cacheprovider"]
    command += ["-q", "-ra", "--tb=short", "--durations=5", f"--junitxml={report}"]
    command += [f"--device={run.device}", "-p", "pytest_timeout", "--timeout=240"] if run.device else []
    return [*command, *(["-k", run.words] if run.words else []), job]


def run_tests(limit_s: float, run: TestRun, env: dict[str, str]) -> dict[str, Any]:
    """{passed, failed, skipped, seconds, failures, errors}: the failed tests' names, and jobs that could not tell."""
    started = time.monotonic()
    with ThreadPoolExecutor(run.num_processes or max(1, min(12, (os.cpu_count() or 1) * 3 // 4))) as pool:
        left = [pool.submit(_run_job, job, started + limit_s, run, env) for job in run.jobs]
        results = [future.result() for future in left]
    counts: dict[str, Any] = {
        key: sum((result[key] for result in results), type(results[0][key])())
        for key in ("passed", "failed", "skipped", "failures", "errors")
    }
    counts["seconds"] = round(time.monotonic() - started, 1)
    say(
        f"tests: {counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped, "
        f"{counts['seconds']} s"
    )
    for line in (*counts["failures"], *counts["errors"]):
        say(f"  {line}")
    return counts


def _run_job(job: str, end: float, run: TestRun, env: dict[str, str]) -> dict[str, Any]:
    """As `run_tests`, of one process, which is cut short at the monotonic time `end`."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        output, code = _run(pytest_command(report, job, run), end - time.monotonic(), env)
        counts = _counted(report) if report.exists() else {"passed": 0, "failed": 0, "skipped": 0, "failures": []}
    errors = []
    if code is None:
        # A report is written at the end: of tests that were cut short only the dots tell.
        dots = "".join(re.findall(r"^([.FEsxX]+)(?: +\[|$)", output, re.MULTILINE))
        counts |= {"passed": dots.count("."), "failed": dots.count("F") + dots.count("E"), "skipped": dots.count("s")}
        errors = [f"{job}: not done in time"]
    elif code not in (0, 1) and not (code == _NO_TESTS_CHOSEN and (run.words or counts["skipped"])):
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


def _run(command: list[str], limit_s: float, env: dict[str, str]) -> tuple[str, int | None]:
    """(what it wrote, its exit code or None if it took too long); all of that is also shown, on our stderr."""
    with tempfile.TemporaryFile("w+") as written:
        try:
            code: int | None = subprocess.run(
                command, cwd=ROOT, env=env, stdout=written, stderr=subprocess.STDOUT, timeout=max(1.0, limit_s)
            ).returncode
        except subprocess.TimeoutExpired:
            code = None
        written.seek(0)
        output = written.read()
    say(output)
    return output, code


def test_environment(**more: str) -> dict[str, str]:
    """Of pytest's processes: no plugin but those that are named."""
    return environment(PYTEST_DISABLE_PLUGIN_AUTOLOAD="1", **more)
