"""Starting, awaiting and stopping a container, and the command line around it."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sagemaker.container import (
    Address,
    ContainerFailed,
    LocalContainer,
    free_port,
    serve_command,
    wait_until_healthy,
)
from tests.unit.sagemaker.fake_container import FakeContainer

ROOT = Path(__file__).parents[3]

# Stands for `serve`: healthy at the third /ping, has a child, and ends on SIGTERM unless it is called stubborn.
SERVE = """
import http.server, json, os, pathlib, signal, subprocess, sys
here = pathlib.Path(__file__).parent
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
(here / "seen.json").write_text(json.dumps({"arguments": sys.argv[1:], "pids": [os.getpid(), child.pid]}))
if here.name == "failing":
    sys.exit(3)
pings = iter([503, 503])

def on_sigterm(number, frame):
    (here / "sigterm").touch()
    if here.name != "stubborn":
        os._exit(0)

signal.signal(signal.SIGTERM, on_sigterm)

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(next(pings, 200))
        self.end_headers()

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body[::-1])

http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""


def write_serve(directory: Path) -> Path:
    directory.mkdir(exist_ok=True)
    (directory / "serve").write_text(SERVE)
    return directory


def runs(pid: int) -> bool:
    try:
        # A zombie, whose parent is gone, has ended too.
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except OSError:
        return False


def assert_ended(repository: Path) -> None:
    pids = json.loads((repository / "seen.json").read_text())["pids"]
    give_up = time.monotonic() + 5
    while any(runs(pid) for pid in pids):
        assert time.monotonic() < give_up, "a process is left behind"
        time.sleep(0.02)


def wait(container: LocalContainer, timeout_s: float = 20) -> bool:
    stopped = threading.Event().wait
    return wait_until_healthy(
        container.address, timeout_s=timeout_s, exit_status=container.exit_status, stopped=stopped
    )


def test_start_wait_stop(tmp_path: Path) -> None:
    repository = write_serve(tmp_path / "good")
    with LocalContainer(serve_command(repository), tmp_path) as container:
        assert wait(container)
        port = str(container.address.port)
    seen = json.loads((repository / "seen.json").read_text())
    assert seen["arguments"] == ["--model", str(tmp_path), "--host", "127.0.0.1", "--port", port]
    assert (repository / "sigterm").exists()
    assert container.exit_status() == 0
    assert_ended(repository)


def test_one_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    repository = write_serve(tmp_path / "stubborn")
    container = LocalContainer(serve_command(repository), tmp_path)
    assert wait(container)
    container.stop(timeout_s=0.3)
    assert (repository / "sigterm").exists()
    assert container.exit_status() == -signal.SIGKILL
    assert_ended(repository)


def test_one_that_ends_at_start(tmp_path: Path) -> None:
    repository = write_serve(tmp_path / "failing")
    with (
        LocalContainer(serve_command(repository), tmp_path) as container,
        pytest.raises(ContainerFailed, match="status 3"),
    ):
        wait(container)
    assert_ended(repository)


def test_one_that_stays_unhealthy(container: FakeContainer) -> None:
    container.ping_statuses = iter([503] * 100)
    never: Callable[[], int | None] = lambda: None  # noqa: E731
    with pytest.raises(ContainerFailed, match=r"within 0\.2 s \(last: 503\)"):
        wait_until_healthy(container.address, timeout_s=0.2, exit_status=never, stopped=threading.Event().wait)
    with pytest.raises(ContainerFailed, match="refused"):
        nothing = Address("127.0.0.1", free_port())
        wait_until_healthy(nothing, timeout_s=0.2, exit_status=never, stopped=threading.Event().wait)
    stop = threading.Event()
    stop.set()
    assert not wait_until_healthy(container.address, timeout_s=5, exit_status=never, stopped=stop.wait)


def test_no_serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ContainerFailed, match="no executable 'serve'"):
        serve_command(tmp_path)
    (tmp_path / "serve").touch(0o755)
    assert serve_command(tmp_path / "elsewhere") == [str(tmp_path / "serve")]


def start(code: str, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def endpoint_url(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    found = re.match(r"Ready: SageMaker Runtime at (http://127\.0\.0\.1:\d+), container at http://", line)
    if found is None:
        process.kill()
        raise AssertionError((line, process.communicate(timeout=10)))
    return found[1]


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_command_with_a_model(tmp_path: Path, make_client: Callable[[str], Any], signal_number: int) -> None:
    repository = write_serve(tmp_path / "good")
    process = start(
        """
        import pathlib, sys, sagemaker.__main__ as command, sagemaker.local_command as local
        local._REPOSITORY = pathlib.Path(sys.argv[1])
        sys.exit(command.main(sys.argv[2:]))
        """,
        *(str(repository), "local", "--model", str(tmp_path), "--port", "0"),
    )
    client = make_client(endpoint_url(process))
    assert client.invoke_endpoint(EndpointName="x", Body=b"abc")["Body"].read() == b"cba"
    client.close()
    process.send_signal(signal_number)
    process.communicate(timeout=20)
    assert process.returncode == 0
    assert (repository / "sigterm").exists()
    assert_ended(repository)


def test_command_notices_that_its_container_died(tmp_path: Path) -> None:
    repository = write_serve(tmp_path / "good")
    process = start(
        """
        import pathlib, sys, sagemaker.__main__ as command, sagemaker.local_command as local
        local._REPOSITORY = pathlib.Path(sys.argv[1])
        sys.exit(command.main(sys.argv[2:]))
        """,
        *(str(repository), "local", "--model", str(tmp_path), "--port", "0"),
    )
    endpoint_url(process)
    os.kill(json.loads((repository / "seen.json").read_text())["pids"][0], signal.SIGKILL)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 1
    assert "the container ended with status -9" in errors
    assert_ended(repository)


def test_command_with_a_url(container: FakeContainer, make_client: Callable[[str], Any]) -> None:
    url = f"http://127.0.0.1:{container.address.port}"
    run = "import sys, sagemaker.__main__ as command; sys.exit(command.main(sys.argv[1:]))"
    process = start(run, "local", "--url", url, "--port", "0", "--endpoint-name", "a", "--endpoint-name", "b")
    client = make_client(endpoint_url(process))
    assert client.invoke_endpoint(EndpointName="b", Body=b"size abc")["Body"].read() == b"3"
    with pytest.raises(client.exceptions.ValidationError):
        client.invoke_endpoint(EndpointName="c", Body=b"size abc")
    client.close()
    process.terminate()
    process.communicate(timeout=20)
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["--url", "localhost:8080"], 2, "not of the form http://HOST:PORT"),
        (["--url", "http://localhost:8080/x"], 2, "not of the form"),
        (["--url", "http://localhost:x"], 2, "not of the form"),
        (["--url", "http://localhost", "--model", "/tmp"], 2, "not allowed with"),
        (["--invocation-timeout-s", "0"], 2, "'0' is not a positive number"),
        (["--max-payload-mb", "x"], 2, "'x' is not a positive number"),
        (["--model", "/nowhere"], 1, "no model directory /nowhere"),
    ],
)
def test_bad_arguments_are_one_line(arguments: list[str], status: int, words: str) -> None:
    command = [sys.executable, "-m", "sagemaker", "local", *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert result.returncode == status
    assert re.search(words, result.stderr.splitlines()[-1])
    assert "Traceback" not in result.stderr


def test_a_taken_port_is_one_line(container: FakeContainer) -> None:
    port = str(container.address.port)
    command = [sys.executable, "-m", "sagemaker", "local", "--url", f"http://127.0.0.1:{port}", "--port", port]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert result.returncode == 1
    assert "in use" in result.stderr.splitlines()[-1]
