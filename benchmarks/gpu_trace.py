"""What the GPU did between two moments: how long no kernel ran, and which kernels took how long. From torch's profiler.

Must not know the engine.
"""

import contextlib
import json
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

# Kernels of one graph start 1 to 2 microseconds after one another; what is longer is a wait for the host.
_LONG_GAP_US = 5.0
_WORK = ("kernel", "gpu_memset", "gpu_memcpy")
_NUM_NAMED = 14


class Trace:
    """Filled when `recorded` ends: the profiler's events, as in a Chrome trace."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        """Record what the GPU does; without one nothing of it is found."""
        activity = torch.profiler.ProfilerActivity
        kind = activity.CUDA if torch.cuda.is_available() else activity.CPU
        with torch.profiler.profile(activities=[kind]) as profile:
            yield
            if torch.cuda.is_available():
                torch.cuda.synchronize()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            profile.export_chrome_trace(str(path))
            self.events = json.loads(path.read_text())["traceEvents"]


def idle_shares(events: list[dict[str, Any]]) -> tuple[float, float] | None:
    """(share of the time in which no kernel ran, share of it in gaps that are longer than those inside a graph).

    The time is that from the first kernel's start to the last one's end. None where there are not two kernels.
    """
    spans = sorted((event["ts"], event["ts"] + event["dur"]) for event in _work(events))
    if len(spans) < 2:
        return None
    idle = long_idle = 0.0
    end = spans[0][1]
    for start, stop in spans:
        gap = max(0.0, start - end)
        idle += gap
        long_idle += gap if gap > _LONG_GAP_US else 0.0
        end = max(end, stop)
    whole = end - spans[0][0]
    return idle / whole, long_idle / whole


def kernel_times(events: list[dict[str, Any]], num_steps: int) -> dict[str, list[float]]:
    """{kernel: [microseconds, launches] per step} of those that take the longest together."""
    totals: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for event in _work(events):
        total = totals[str(event.get("name", ""))[:80]]
        total[0] += event["dur"] / num_steps
        total[1] += 1 / num_steps
    longest = sorted(totals.items(), key=lambda item: -item[1][0])[:_NUM_NAMED]
    return {name: [round(value, 2) for value in values] for name, values in longest}


def _work(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for event in events if event.get("cat") in _WORK and "dur" in event]
