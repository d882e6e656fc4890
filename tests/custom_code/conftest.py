"""Artifacts with scripts, and the web tier's application over them and a scripted engine."""

import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import gevent
import pytest
from flask.testing import FlaskClient

from container.app import create_app
from container.config import ServerConfig
from container.custom_code.scripts import CustomCodeSettings
from container.custom_code.worker import CustomCode
from container.engine_client import EngineClient
from tests.http.conftest import (  # noqa: F401  # fixtures
    engine,
    engine_client,
    model_dir,
    model_info,
    shared_engine,
    tokenizer,
)

Start = Callable[..., FlaskClient]


class Broken(Exception):
    """Custom code could not be loaded."""


@pytest.fixture
def start(engine_client: EngineClient, tmp_path: Path) -> Iterator[Start]:  # noqa: F811
    """start({"code/inference.py": text, …}, VARIABLE="value"): the client, when the code is loaded. Raises Broken."""
    numbers = itertools.count()
    path_before, modules_before = list(sys.path), set(sys.modules)

    def make(files: dict[str, str], **environment: str) -> FlaskClient:
        artifact = tmp_path / f"artifact-{next(numbers)}"
        for name, text in files.items():
            (artifact / name).parent.mkdir(parents=True, exist_ok=True)
            (artifact / name).write_text(text)
        file = artifact.with_suffix(".file")
        file.write_text(str(artifact))
        broken: list[bool] = []
        config = ServerConfig(max_body_mb=1, request_timeout_s=20)
        settings = CustomCodeSettings(artifact_file=str(file), environment=environment)
        code = CustomCode(settings, engine_client, config, on_broken=lambda: broken.append(True))
        code.start()
        client = create_app(engine_client, config, code).test_client()
        with gevent.Timeout(20):
            while code._stage is not None and not broken:
                gevent.sleep(0.01)
        if broken:
            raise Broken
        return client

    yield make
    sys.path[:] = path_before
    for name in set(sys.modules) - modules_before:
        file = getattr(sys.modules[name], "__file__", None)
        if file and file.startswith(str(tmp_path)):
            del sys.modules[name]
