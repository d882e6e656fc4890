"""How the GPU's engine benchmarks report and how they run one another: rows of JSON as they come, children with limits.

Every script prints a row on stdout as soon as it is measured and one object of all rows at the end, so that of a
script that was cut short the rows are still there. What may break or fill a GPU runs in a child of its own, whose end
gives the memory back. Must not know what is measured.
"""

import argparse
import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.common import finish, say

ROOT = Path(__file__).parents[1]
# What a machine's image may set, and what would make of torch's float32 products, the references, less than that.
NOT_INHERITED = {"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "NVIDIA_TF32_OVERRIDE", "TRITON_INTERPRET"}
Row = dict[str, Any]


def in_short(error: BaseException) -> str:
    """Type and first line."""
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]


def environment(**more: str) -> dict[str, str]:
    """For a child: our packages can be imported, its output comes at once, and nothing turns float32 into less."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    kept = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
    return {**kept, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false", **more}


def add_common_arguments(parser: argparse.ArgumentParser, limit_s: float) -> None:
    """--limit-s and --smoke, which every part has."""
    parser.add_argument("--limit-s", type=float, default=limit_s, help=f"start nothing after this (default: {limit_s})")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes on the CPU: proves the script, not the speed")


def needs_gpu(*, smoke: bool) -> None:
    """Exit with 2, after one line, where there is no GPU and none is to be done without."""
    import torch

    if not smoke and not torch.cuda.is_available():
        say("no GPU: torch.cuda.is_available() is false (--smoke proves the script without one)")
        raise SystemExit(2)


class Rows:
    """The rows of one script and the time it has. A child's are printed for people by the script that started it."""

    def __init__(self, benchmark: str, args: argparse.Namespace) -> None:
        limit_s: float = args.limit_s
        self.rows: list[Row] = []
        self._benchmark = benchmark
        self._args = args
        self._end = time.monotonic() + limit_s

    @property
    def left_s(self) -> float:
        """Seconds until the limit."""
        return self._end - time.monotonic()

    def add(self, row: Row) -> None:
        """Keep a row, and print it for people and for whoever runs the script."""
        self.rows.append(row)
        shown = {key: value for key, value in row.items() if not isinstance(value, dict | list)}
        if not getattr(self._args, "child", None):
            say("  ".join(f"{key} {_in_short(value)}" for key, value in shown.items()))
        print(json.dumps(row), flush=True)

    def attempt(self, name: str, least_s: float, measure: Callable[[], list[Row]]) -> None:
        """Add what `measure` returns; or why there is nothing: it failed, or less than `least_s` were left."""
        if not self._has_time(name, least_s):
            return
        try:
            for row in measure():
                self.add(row)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever is wrong with one, the others are measured
            self.add({"name": name, "failed": in_short(error)})

    def run(self, name: str, least_s: float, command: list[str], most_s: float, **env: str) -> list[Row]:
        """Add the rows of a child as they come, and a row that says so where it fails or takes more than `most_s`."""
        if not self._has_time(name, least_s):
            return []
        rows, error = run_child(command, min(most_s, self.left_s), env=environment(**env), on_row=self.add)
        if error is not None or not rows:
            self.add({"name": name, "failed": error or "it printed nothing"})
        return rows

    def _has_time(self, name: str, least_s: float) -> bool:
        if self.left_s < least_s:
            self.add({"name": name, "not_measured": f"{max(0.0, self.left_s):.0f} s left, {least_s:.0f} needed"})
        return self.left_s >= least_s

    def finish(self) -> int:
        """Print the last line; the exit code: 1 where something failed or nothing was measured."""
        from benchmarks.gpu_timing import gpu_machine

        args = {key: str(value) if isinstance(value, Path) else value for key, value in vars(self._args).items()}
        finish({"benchmark": self._benchmark, **args, "results": self.rows, "machine": gpu_machine()})
        measured = [row for row in self.rows if "failed" not in row and "not_measured" not in row]
        return 0 if measured and not any("failed" in row for row in self.rows) else 1


def _in_short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def run_child(
    command: list[str],
    limit_s: float,
    *,
    env: dict[str, str] | None = None,
    on_row: Callable[[Row], None] | None = None,
) -> tuple[list[Row], str | None]:
    """(the objects that it printed on stdout, why it was cut short or failed). Its stderr is ours.

    command: what follows the name of the Python. After limit_s the child and all that it started are killed.
    """
    process = subprocess.Popen(
        [sys.executable, *command], cwd=ROOT, env=env or environment(), stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(process, lines), daemon=True).start()
    end = time.monotonic() + max(1.0, limit_s)
    rows: list[Row] = []
    error = None
    try:
        while True:
            line = lines.get(timeout=max(0.0, end - time.monotonic()))
            if line is None:
                break
            with contextlib.suppress(ValueError):
                row = json.loads(line)
                if isinstance(row, dict):
                    rows.append(row)
                    if on_row is not None:
                        on_row(row)
        code = process.wait(max(1.0, end - time.monotonic()))
        if code:
            error = f"ended with {code}"
    except (queue.Empty, subprocess.TimeoutExpired):
        error = f"not done after {limit_s:.0f} s"
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)
    return rows, error


def _read(process: "subprocess.Popen[str]", lines: "queue.SimpleQueue[str | None]") -> None:
    assert process.stdout is not None
    with contextlib.suppress(ValueError):
        for line in process.stdout:
            lines.put(line)
    lines.put(None)


def bar(value: float, limit: float, *, at_least: bool = False) -> Row:
    """{bar, met} of a figure."""
    met = value >= limit if at_least else value <= limit
    return {"bar": f"{'>=' if at_least else '<='} {limit:g}", "met": bool(met)}
