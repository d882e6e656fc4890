"""The supervisor over scripted children: restarts, exit codes, signals, and nothing left behind."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from container.code_in_artifact import CodeInArtifact
from container.config import ServerConfig, Settings
from engine.api import EngineConfig
from tests.http.web_process import free_port

ROOT = Path(__file__).parents[2]

# A supervisor whose children are scripts: `engine` and `web` are Python statements.
HARNESS = """
import subprocess, sys
from pathlib import Path
from container.config import ServerConfig, Settings
from container.processes import configure_logging
from container.supervisor import Supervisor
from engine.api import EngineConfig

def launch(module, *arguments):
    code = {{"engine": {engine!r}, "container.web": {web!r}}}[module]
    return subprocess.Popen([sys.executable, "-c", code, *arguments], cwd={root!r}, process_group=0)

configure_logging("info")
server = ServerConfig(port={port}, stall_limit_s=2, grace_s=3, **{settings!r})
sys.exit(Supervisor(Settings(server, EngineConfig(model="x")), Path({run_dir!r}), launch).run())
"""

IDLE = "import time; time.sleep(60)"
ENGINE = """
import sys, time, socket, threading
from engine.api import EngineStatus, encode_message, frame
listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
listener.bind(sys.argv[2])
listener.listen()
connection, _ = listener.accept()
for _ in range(BEATS):
    status = EngineStatus(state="ready", stage="ready", stamp=time.monotonic(), pid=1)
    connection.sendall(frame(encode_message(status)))
    time.sleep(0.2)
END
"""


def engine(beats: int, end: str) -> str:
    return ENGINE.replace("BEATS", str(beats)).replace("END", end)


class Harness:
    def __init__(
        self, run_dir: Path, engine: str, web: str = IDLE, is_subreaper: bool = False, **settings: object
    ) -> None:
        code = HARNESS.format(engine=engine, web=web, root=str(ROOT), port=1, settings=settings, run_dir=str(run_dir))
        if is_subreaper:
            code = "import ctypes; ctypes.CDLL(None).prctl(36, 1)\n" + code
        self.process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE)
        self.lines: list[str] = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.decode())

    def wait_for(self, words: str, count: int = 1, timeout_s: float = 20) -> None:
        end = time.monotonic() + timeout_s
        while sum(words in line for line in self.lines) < count:
            assert time.monotonic() < end, self.lines
            time.sleep(0.02)

    def wait(self, timeout_s: float = 20) -> int:
        code = self.process.wait(timeout_s)
        self.reader.join(5)
        return code


@pytest.fixture
def start(tmp_path: Path) -> Iterator[type[Harness]]:
    started: list[Harness] = []

    def make(*args: object, **kwargs: object) -> Harness:
        started.append(Harness(tmp_path, *args, **kwargs))  # type: ignore[arg-type]
        return started[-1]

    yield make  # type: ignore[misc]
    for harness in started:
        if harness.process.poll() is None:
            for child in psutil.Process(harness.process.pid).children(recursive=True):
                child.kill()
            harness.process.kill()
            harness.process.wait(5)


def children(harness: Harness) -> list[psutil.Process]:
    return psutil.Process(harness.process.pid).children(recursive=True)


def test_a_dead_engine_is_started_again_until_it_is_too_often(start: type[Harness]) -> None:
    harness = start(engine(1, "sys.exit(7)"), max_engine_restarts=1)
    assert harness.wait() == 1
    assert sum("started the engine" in line for line in harness.lines) == 2
    assert any("exit code 7; starting it again in 0.5 s" in line for line in harness.lines)
    assert any("more than 1 times in 600 s; stopping" in line for line in harness.lines)


def test_an_engine_that_cannot_serve_is_not_started_again(start: type[Harness]) -> None:
    harness = start("import sys; sys.exit(2)")
    assert harness.wait() == 2
    assert not any("requests still run" in line for line in harness.lines)
    assert sum("started the engine" in line for line in harness.lines) == 1


def test_a_hung_engine_is_killed_and_started_again(start: type[Harness]) -> None:
    harness = start(engine(3, "time.sleep(60)"))
    harness.wait_for("the engine is ready")
    first = children(harness)
    harness.wait_for("no sign of life")
    harness.wait_for("started the engine", 2)
    assert sum(process.is_running() for process in first) == 1


def test_an_engine_that_never_gets_ready_is_started_again(start: type[Harness]) -> None:
    harness = start(IDLE, start_timeout_s=1, max_engine_restarts=0)
    assert harness.wait() == 1
    assert any("not ready within 1 s" in line for line in harness.lines)


def test_the_end_of_the_web_tier_is_the_end(start: type[Harness]) -> None:
    harness = start(engine(1000, ""), web="import time, sys; time.sleep(0.5); sys.exit(1)")
    assert harness.wait() == 1
    assert any("the web tier ended with exit code 1" in line for line in harness.lines)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_everything_with_0(start: type[Harness], number: signal.Signals) -> None:
    harness = start(engine(1000, ""))
    harness.wait_for("the engine is ready")
    family = children(harness)
    assert len(family) == 2
    harness.process.send_signal(number)
    assert harness.wait(5) == 0
    assert psutil.wait_procs(family, timeout=2)[1] == []


def test_stubborn_children_end_within_the_grace_period(start: type[Harness]) -> None:
    ignore = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    harness = start(ignore + engine(1000, ""), web=ignore + IDLE)
    harness.wait_for("the engine is ready")
    time.sleep(0.3)
    family = children(harness)
    started = time.monotonic()
    harness.process.send_signal(signal.SIGTERM)
    assert harness.wait(10) == 0
    assert 1 < time.monotonic() - started < 3 + 2
    assert psutil.wait_procs(family, timeout=2)[1] == []


def test_a_second_signal_hurries(start: type[Harness]) -> None:
    ignore = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
    harness = start(ignore + engine(1000, ""), web=ignore + IDLE)
    harness.wait_for("the engine is ready")
    time.sleep(0.3)
    started = time.monotonic()
    harness.process.send_signal(signal.SIGTERM)
    harness.wait_for("stopping")
    harness.process.send_signal(signal.SIGTERM)
    assert harness.wait(5) == 0
    assert time.monotonic() - started < 1.5


def test_orphans_are_reaped(start: type[Harness]) -> None:
    """With a subreaper in place of PID 1: an orphan of a child becomes ours, and is no zombie for long."""
    orphan = "import subprocess, sys; subprocess.Popen(['sleep', '0.5'], start_new_session=True); sys.exit(1)"
    harness = start(orphan, is_subreaper=True)
    harness.wait_for("starting it again")
    time.sleep(1.2)
    assert [p for p in children(harness) if p.status() == psutil.STATUS_ZOMBIE] == []


def test_nothing_survives_a_killed_supervisor(tmp_path: Path) -> None:
    """The web tier asks the kernel to be told; the engine's own test holds the same for the engine."""
    server = ServerConfig(host="127.0.0.1", port=free_port(), num_workers=1)
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import json, os, subprocess, sys, time\n"
            "content = json.loads(sys.argv[2])\n"
            "content['parent_pid'] = os.getpid()\n"
            "open(sys.argv[1], 'w').write(json.dumps(content))\n"
            "subprocess.Popen([sys.executable, '-m', 'container.web', '--settings', sys.argv[1]])\n"
            "time.sleep(60)\n",
            str(tmp_path / "web.json"),
            json.dumps({"server": dataclasses.asdict(server), "engine_socket": str(tmp_path / "no.sock")}),
        ],
        cwd=ROOT,
    )
    try:
        end = time.monotonic() + 20
        while len(family := psutil.Process(parent.pid).children(recursive=True)) < 2:
            assert time.monotonic() < end
            time.sleep(0.05)
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait(5)
        assert psutil.wait_procs(family, timeout=10)[1] == []
    finally:
        parent.kill()


def test_a_script_means_one_worker_unless_told_otherwise(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (tmp_path / "artifact/code").mkdir(parents=True)
    (tmp_path / "artifact/code/inference.py").touch()
    settings = Settings(ServerConfig(num_workers=3), EngineConfig(model="x"))
    for artifact, given, expected in (("artifact", False, 1), ("artifact", True, 3), ("other", False, 3)):
        code = CodeInArtifact(dataclasses.replace(settings, is_num_workers_given=given), run_dir)
        code.found(None)
        assert code.num_workers == 3
        code.found(str(tmp_path / artifact))
        assert code.num_workers == expected
        assert Path(code.settings.artifact_file).read_text() == str(tmp_path / artifact)
