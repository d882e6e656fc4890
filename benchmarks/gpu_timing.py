"""How the GPU benchmarks take time: graph replays between events, rotating inputs, and the two ceilings.

A call's time is that of one replay of a CUDA graph over the number of calls in it, so that launching costs what it
costs the engine, which replays graphs too. What is bound by memory is given several sets of inputs, together larger
than the cache, and each replay goes through all of them. Every figure is the median of many replays, taken twice: the
spread of the two is what a difference must exceed to mean something. Must not know what is measured.
"""

import dataclasses
import datetime
import functools
import itertools
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

Call = Callable[[], object]
# The sets of inputs together are this many times the L2 cache: nothing of a set is left when its turn comes again.
_CACHES_PER_ROTATION = 4
_MAX_SETS = 64


@dataclasses.dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one call: the mean of two medians; spread: how far these two are apart, as a part of the lesser."""

    seconds: float
    spread: float


class Clock(Protocol):
    """What takes the time of calls, which stand for the same work on different inputs."""

    def time(self, calls: Sequence[Call]) -> Timing:
        """The time of one call, on average over the sets of inputs."""
        ...


class GraphClock:
    """Graph replays on a GPU."""

    def __init__(self, measured_s: float = 0.15, min_calls: int = 50) -> None:
        """measured_s: how long each of the two timings lasts, about. min_calls: in a graph."""
        self._measured_s = measured_s
        self._min_calls = min_calls

    def time(self, calls: Sequence[Call]) -> Timing:
        """The first calls compile and load; then one graph of all sets, as often as makes `min_calls`."""
        graph, num_calls = self._captured(calls)
        once = self._replays(graph, 1)[0]  # warms up too
        once = self._replays(graph, 1)[0]
        num_replays = max(5, min(2000, int(self._measured_s / max(once, 1e-6))))
        medians = [statistics.median(self._replays(graph, num_replays)) / num_calls for _ in range(2)]
        return Timing(statistics.fmean(medians), (max(medians) - min(medians)) / min(medians))

    def _captured(self, calls: Sequence[Call]) -> tuple[torch.cuda.CUDAGraph, int]:
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for call in calls:
                call()
            torch.cuda.synchronize()
            started = time.perf_counter()
            calls[0]()
            torch.cuda.synchronize()
            is_long = time.perf_counter() - started > 1e-3
        torch.cuda.current_stream().wait_stream(side)
        # Where one call takes a millisecond or more, the gap between two replays is nothing beside it.
        rounds = 1 if is_long else -(-self._min_calls // len(calls))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(rounds):
                for call in calls:
                    call()
        return graph, rounds * len(calls)

    @staticmethod
    def _replays(graph: torch.cuda.CUDAGraph, count: int) -> list[float]:
        """Seconds of each of `count` replays."""
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]  # type: ignore[no-untyped-call]
        marks[0].record()
        for mark in marks[1:]:
            graph.replay()
            mark.record()
        torch.cuda.synchronize()
        return [start.elapsed_time(end) * 1e-3 for start, end in itertools.pairwise(marks)]


class HostClock:
    """One call of each set by the host's clock: proves that a benchmark runs, and measures nothing worth telling."""

    def time(self, calls: Sequence[Call]) -> Timing:
        """See the class."""
        started = time.perf_counter()
        for call in calls:
            call()
        return Timing((time.perf_counter() - started) / len(calls), 0.0)


def num_sets(num_bytes: int, cache_bytes: int) -> int:
    """How many sets of inputs of `num_bytes` the rotation takes: one where a set is larger than the cache many times.

    cache_bytes: the GPU's L2; 0 is no rotation.
    """
    return max(1, min(_MAX_SETS, -(-_CACHES_PER_ROTATION * cache_bytes // max(1, num_bytes))))


@dataclasses.dataclass(frozen=True, slots=True)
class Ceilings:
    """What the GPU can do at most, measured: bytes/s of a copy, read and written; flop/s of a bfloat16 product."""

    copy_bytes_s: float
    matrix_flops_s: float
    spread: float


def ceilings(device: torch.device, clock: Clock, copy_bytes: int, matrix_size: int) -> Ceilings:
    """The two, on random data: a product of zeros takes less power and can run faster than any real one.

    copy_bytes: of the source. matrix_size: of both square factors.
    """
    source = torch.empty(copy_bytes // 8, dtype=torch.int64, device=device).random_()
    copy = clock.time([functools.partial(torch.empty_like(source).copy_, source)])
    a, b = (torch.randn(matrix_size, matrix_size, device=device).to(torch.bfloat16) for _ in range(2))
    product = clock.time([functools.partial(torch.mm, a, b, out=torch.empty_like(a))])
    return Ceilings(
        2 * source.nbytes / copy.seconds, 2 * matrix_size**3 / product.seconds, max(copy.spread, product.spread)
    )


def gpu_machine() -> dict[str, Any]:
    """Where this is measured: GPU, driver and versions; nothing of it needs more than torch and triton."""
    import triton

    place: dict[str, Any] = {"date": datetime.datetime.now(datetime.UTC).date().isoformat(), "gpu": None}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        place |= {
            "gpu": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "driver": _driver_version(),
        }
    versions = {"python": platform.python_version(), "torch": torch.__version__, "triton": triton.__version__}
    return {**place, "versions": {**versions, "cuda": torch.version.cuda}}


def _driver_version() -> str | None:
    """What `nvidia-smi` calls it; None where there is no such command. It only asks."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return ran.stdout.split("\n")[0].strip() or None
