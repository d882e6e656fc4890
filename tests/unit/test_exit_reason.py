"""What the log says of a process that has ended."""

from pathlib import Path

import pytest

from container.exit_reason import ExitReasons

V2 = ("memory.events", "low 0\nmax 7\noom 1\noom_kill {}\n", "memory.max")
V1 = ("memory/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill {}\n", "memory/memory.limit_in_bytes")


@pytest.mark.parametrize(
    ("code", "words"), [(0, "ended with exit code 0"), (7, "ended with exit code 7"), (-11, "was killed by SIGSEGV")]
)
def test_codes_and_signals(tmp_path: Path, code: int, words: str) -> None:
    assert ExitReasons(tmp_path).describe(code) == words


def test_a_kill_may_be_the_kernels(tmp_path: Path) -> None:
    told = ExitReasons(tmp_path).describe(-9)
    assert told.startswith("was killed by SIGKILL; if nobody sent it, the host ran out of memory: give it more")


@pytest.mark.parametrize(("events", "text", "limit"), [V2, V1], ids=["v2", "v1"])
def test_the_kernel_that_is_short_of_memory_is_named_with_the_limit(
    tmp_path: Path, events: str, text: str, limit: str
) -> None:
    (tmp_path / events).parent.mkdir(exist_ok=True)
    (tmp_path / events).write_text(text.format(3))
    (tmp_path / limit).write_text(f"{6 * 2**30}\n")
    reasons = ExitReasons(tmp_path)
    assert reasons.describe(-9).startswith("was killed by SIGKILL")
    (tmp_path / events).write_text(text.format(4))
    told = reasons.describe(-9)
    assert told.startswith("was killed by the kernel: the container's memory limit of 6.0 GiB is used up; give it more")
    assert "\n" not in told
    # The next one is looked at anew.
    assert reasons.describe(-9).startswith("was killed by SIGKILL")
    (tmp_path / events).write_text(text.format(5))
    (tmp_path / limit).write_text("max\n")
    assert "the host's memory is used up" in reasons.describe(-9)
