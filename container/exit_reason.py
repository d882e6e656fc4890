"""How a child process ended, in words for the log: its exit code, its signal, or a kernel that was short of memory.

Knows exit codes and the cgroup's count of processes that the kernel has killed. Must not know which process it was.
"""

import signal
from pathlib import Path

# Of cgroups v2 and v1, as a container sees its own: the file with the count, the one with the limit in bytes.
_CGROUPS = (
    (Path("memory.events"), Path("memory.max")),
    (Path("memory/memory.oom_control"), Path("memory/memory.limit_in_bytes")),
)
# What v1 says where there is no limit is nearly 2^63.
_NO_LIMIT_BYTES = 2**60
_ADVICE = "give it more, or lower kv_cache_memory_gib or max_num_seqs"


class ExitReasons:
    """Made before the processes start, so that only what was killed since then counts."""

    def __init__(self, root: Path = Path("/sys/fs/cgroup")) -> None:
        self._root = root
        self._num_killed = self._count()

    def describe(self, code: int) -> str:
        """What follows "the engine …" for Popen's return code: "ended with exit code 1", "was killed by …"."""
        if code >= 0:
            return f"ended with exit code {code}"
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        if -code != signal.SIGKILL:
            return f"was killed by {name}"
        before, self._num_killed = self._num_killed, self._count()
        if self._num_killed > before:
            return f"was killed by the kernel: {self._limit()} is used up; {_ADVICE}"
        return f"was killed by {name}; if nobody sent it, the host ran out of memory: {_ADVICE}"

    def _count(self) -> int:
        for events, _ in _CGROUPS:
            for line in _text(self._root / events).splitlines():
                name, _, value = line.partition(" ")
                if name == "oom_kill" and value.strip().isdigit():
                    return int(value)
        return 0

    def _limit(self) -> str:
        for _, limit in _CGROUPS:
            text = _text(self._root / limit).strip()
            if text.isdigit() and int(text) < _NO_LIMIT_BYTES:
                return f"the container's memory limit of {int(text) / 2**30:.1f} GiB"
        return "the host's memory"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
