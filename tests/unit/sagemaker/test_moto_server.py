"""The commands as processes, against moto's server: nothing of AWS is patched within them."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.sagemaker.aws_fakes import DEPLOY

ROOT = Path(__file__).parents[3]
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run() -> Iterator[Run]:
    pytest.importorskip("flask_cors", reason="moto's server needs flask-cors")
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1",
    }

    def command(*arguments: str) -> subprocess.CompletedProcess[str]:
        whole = [sys.executable, "-m", "sagemaker", *arguments]
        return subprocess.run(whole, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)

    try:
        yield command
    finally:
        server.stop()


def test_an_endpoint_from_its_making_to_its_end(run: Run) -> None:
    made = run(*DEPLOY, "--model", "s3://bucket/models/m/", "--max-instances", "3")
    assert (made.returncode, made.stderr) == (0, "")
    assert made.stdout.splitlines()[-1] == "next: python -m sagemaker invoke mine 'Hello' --stream"
    again = run(*DEPLOY)
    assert again.returncode == 1
    assert "endpoint mine exists" in again.stderr
    # What moto answers for any endpoint.
    assert run("invoke", "mine", "Hi").stdout == "body\n"
    assert run("invoke", "mine", "Hi", "--async").stderr.splitlines()[-1].startswith("next: aws s3 cp s3://")
    assert "endpoint mine: InService" in run("status").stdout
    deleted = run("delete", "mine")
    assert (deleted.returncode, deleted.stderr) == (0, "")
    assert "no endpoint in us-east-1" in run("status").stdout
