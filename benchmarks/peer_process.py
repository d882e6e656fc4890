"""Starts one engine of `benchmarks/cpu_peers.py` in a process of its own, waits for its report, and ends it.

Knows processes, environments and logs. Must not know workloads or results.
"""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.peer_runner import MARK

_RUNNER = Path(__file__).with_name("peer_runner.py")
_END_TIMEOUT_S = 30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """One row of the result.

    engine: a name in peer_runner.ENGINES. settings: passed to the engine's constructor. environment: on top of ours.
    starts: the kinds of start to a first token, in the order in which they are measured; the first has empty caches.
    """

    name: str
    engine: str
    python: str
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    starts: tuple[str, ...] = ("start", "start_compiled")


class PeerFailed(RuntimeError):
    """An engine ended without a report. One line, with the path of its log."""


def run_candidate(
    candidate: Candidate, plan: dict[str, Any], work_dir: Path, cache_dir: Path, timeout_s: float
) -> tuple[dict[str, Any], float]:
    """The report of one run, and the seconds from the start of the process until it came.

    work_dir gets the plan and the log. cache_dir: where the engine keeps what it compiles; empty is a first start ever.
    Raises PeerFailed.
    """
    plan_file, log_file = work_dir / f"{candidate.name}.json", work_dir / f"{candidate.name}.log"
    plan_file.write_text(json.dumps({**plan, "settings": candidate.settings}))
    command = [candidate.python, "-P", str(_RUNNER), candidate.engine, str(plan_file)]
    report: dict[str, Any] | None = None
    seconds = 0.0
    with log_file.open("w") as log:
        start = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=work_dir,
            env=_environment(candidate, cache_dir),
            start_new_session=True,  # so that its own children end with it
        )
        watchdog = _kill_after(timeout_s, process)
        try:
            assert process.stdout is not None
            for line in process.stdout:  # until none of its processes is left to write
                if not line.startswith(MARK):
                    log.write(line)
                    continue
                seconds = time.perf_counter() - start
                report = json.loads(line[len(MARK) :])
                watchdog.cancel()
                watchdog = _kill_after(_END_TIMEOUT_S, process)
        finally:
            watchdog.cancel()
            _kill(process)  # no process of it may be left to take time from the next
            process.wait(_END_TIMEOUT_S)
    if report is None:
        raise PeerFailed(f"{candidate.name} failed: {_last_error(log_file, process.returncode)} (log: {log_file})")
    return report, seconds


def _environment(candidate: Candidate, cache_dir: Path) -> dict[str, str]:
    # PYTHONPATH would show a peer our packages, and one of them has the name of an optional one of transformers.
    inherited = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "LD_PRELOAD")}
    caches = {
        name: str(cache_dir / name.lower()) for name in ("XDG_CACHE_HOME", "VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR")
    }
    return {**inherited, "HF_HUB_OFFLINE": "1", **caches, **candidate.environment}


def _kill_after(seconds: float, process: "subprocess.Popen[str]") -> threading.Timer:
    timer = threading.Timer(seconds, _kill, (process,))
    timer.start()
    return timer


def _kill(process: "subprocess.Popen[str]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _last_error(log_file: Path, status: int) -> str:
    lines = [line.strip() for line in log_file.read_text(errors="replace").splitlines()]
    errors = [line for line in lines if "Error: " in line]
    return errors[-1][-300:] if errors else f"exit status {status}"
