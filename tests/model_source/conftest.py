"""A model in pieces, the two services that have it, and a place to download it to."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from container.model_source.progress import Progress
from tests.http import tiny_model
from tests.model_source.hub_server import HubServer, running_hub
from tests.model_source.s3_server import S3Server, running_s3

WEIGHTS = os.urandom(3_000_000)


@pytest.fixture(scope="session")
def model_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    directory = tmp_path_factory.mktemp("model")
    tiny_model.write(directory)
    files = {path.name: path.read_bytes() for path in directory.iterdir()}
    return {**files, "config.json": b"{}", "model.safetensors": WEIGHTS}


@pytest.fixture
def s3(model_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    with running_s3() as server:
        for name, value in aws_environment(server.url).items():
            monkeypatch.setenv(name, value)
        server.objects.update({f"models/tiny/{name}": content for name, content in model_files.items()})
        yield server


def aws_environment(endpoint: str) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL_S3": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@pytest.fixture
def hub(model_files: dict[str, bytes]) -> Iterator[HubServer]:
    with running_hub() as server:
        server.files.update(model_files)
        yield server


class Lines:
    """A Progress, and what it published."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.progress = Progress(self.lines.append)


@pytest.fixture
def told() -> Lines:
    return Lines()


def contents(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and ".cache" not in path.parts
    }
