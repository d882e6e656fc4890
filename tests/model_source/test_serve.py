"""`serve` with a model that must be downloaded: the stage on /ping, the end on a signal, at the limit, on an error."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.http.web_process import free_port
from tests.model_source.conftest import aws_environment
from tests.model_source.hub_server import REPO, HubServer
from tests.model_source.s3_server import S3Server

ROOT = Path(__file__).parents[2]
TINY = ROOT / "models/galley-tiny"


class Serve:
    def __init__(self, directory: Path, *arguments: str, **environment: str) -> None:
        self.url = f"http://127.0.0.1:{(port := free_port())}"
        self.log = directory / "serve.log"
        command = [
            sys.executable,
            str(ROOT / "serve"),
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--num-workers",
            "1",
        ]
        command += ["--download-dir", str(directory / "downloads"), *arguments]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, env={**os.environ, **environment}, cwd="/", stderr=log)

    def ping(self) -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(f"{self.url}/ping", timeout=2) as response:
                return response.status, None
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)
        except OSError:
            return 0, {}

    def wait_for(self, words: str, timeout_s: float = 30) -> None:
        end = time.monotonic() + timeout_s
        while words not in str(self.ping()[1]):
            assert time.monotonic() < end, (self.ping(), self.log.read_text())
            time.sleep(0.05)


@pytest.fixture
def started() -> Iterator[list[Serve]]:
    running: list[Serve] = []
    yield running
    for serve in running:
        if serve.process.poll() is None:
            serve.process.terminate()
            serve.process.wait(20)


def slow(s3: S3Server) -> dict[str, str]:
    s3.delay_s = 1000.0
    return aws_environment(s3.url)


def test_ping_tells_the_stage_and_a_signal_ends_it_at_once(s3: S3Server, tmp_path: Path, started: list[Serve]) -> None:
    serve = Serve(tmp_path, "--model", "s3://bucket/models/tiny", **slow(s3))
    started.append(serve)
    serve.wait_for("downloading the model: 0 of 3 MB")
    assert serve.ping() == (503, {"status": "starting", "stage": "downloading the model: 0 of 3 MB"})
    family = psutil.Process(serve.process.pid).children(recursive=True)
    asked = time.monotonic()
    serve.process.send_signal(signal.SIGTERM)
    assert serve.process.wait(10) == 0
    assert time.monotonic() - asked < 5
    assert psutil.wait_procs(family, timeout=2)[1] == []


def test_the_time_limit_ends_it(s3: S3Server, tmp_path: Path, started: list[Serve]) -> None:
    serve = Serve(tmp_path, "--model", "s3://bucket/models/tiny", "--start-timeout-s", "4", **slow(s3))
    started.append(serve)
    assert serve.process.wait(20) == 1
    assert "the model was not downloaded within 4 s (start_timeout_s)" in serve.log.read_text()


def test_a_killed_download_is_started_again(s3: S3Server, tmp_path: Path, started: list[Serve]) -> None:
    serve = Serve(tmp_path, "--model", "s3://bucket/models/tiny", **slow(s3))
    started.append(serve)
    serve.wait_for("downloading the model")
    (child,) = (
        process
        for process in psutil.Process(serve.process.pid).children()
        if "container.model_source" in process.cmdline()
    )
    child.kill()
    serve.wait_for("waiting for the engine")
    serve.wait_for("downloading the model")
    assert "the download was killed by SIGKILL; " in serve.log.read_text()
    assert "; starting it again in 0.5 s" in serve.log.read_text()


def test_what_cannot_be_had_ends_the_start_with_one_line(tmp_path: Path, started: list[Serve]) -> None:
    environment = aws_environment("http://127.0.0.1:1")
    serve = Serve(tmp_path, "--model", "s3://bucket/x", **environment)
    started.append(serve)
    assert serve.process.wait(60) == 2
    log = serve.log.read_text()
    assert "s3://bucket/x: the container has no network route to S3" in log
    assert "Traceback" not in log


def wait_ready(serve: Serve) -> None:
    end = time.monotonic() + 120
    while serve.ping()[0] != 200:
        assert time.monotonic() < end and serve.process.poll() is None, serve.log.read_text()
        time.sleep(0.1)


def test_code_that_comes_from_s3_with_the_model_runs_in_one_worker(
    s3: S3Server, tmp_path: Path, started: list[Serve]
) -> None:
    """Two workers are running when the download ends; the script's is the only one that stays."""
    script = b"def transform_fn(model, body, content_type, accept): return model.generate('1, 2,', max_tokens=2).text"
    s3.objects = {f"m/tiny/{path.name}": path.read_bytes() for path in TINY.iterdir() if path.is_file()}
    s3.objects["m/code/inference.py"] = script
    serve = Serve(tmp_path, "--model", "s3://bucket/m", **aws_environment(s3.url))
    started.append(serve)
    wait_ready(serve)
    request = urllib.request.Request(f"{serve.url}/invocations", b"x", {"Accept": "text/plain"})
    with urllib.request.urlopen(request, timeout=30) as response:
        assert (response.status, response.headers["Content-Type"]) == (200, "text/plain")
    (web,) = (p for p in psutil.Process(serve.process.pid).children() if "container.web" in p.cmdline())
    assert len(web.children()) == 1


def test_a_model_from_the_hub_is_served_under_its_name(hub: HubServer, tmp_path: Path, started: list[Serve]) -> None:
    hub.files = {path.name: path.read_bytes() for path in TINY.iterdir() if path.is_file()}
    hub.token = "hf_secret"
    serve = Serve(
        tmp_path, "--model", REPO, HF_ENDPOINT=hub.url, SM_GALLEY_HF_TOKEN="hf_secret", HF_HOME=str(tmp_path / "hf")
    )
    started.append(serve)
    wait_ready(serve)
    with urllib.request.urlopen(f"{serve.url}/v1/models", timeout=5) as response:
        assert json.load(response)["data"][0]["id"] == REPO
    assert "hf_secret" not in serve.log.read_text()
