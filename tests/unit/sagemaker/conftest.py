"""A fake container, the endpoint in front of it, and a real boto3 client."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import boto3
import botocore.config
import botocore.stub
import moto
import pytest

from sagemaker.deploy import Tool
from sagemaker.local import EndpointConfig, LocalEndpoint
from tests.unit.sagemaker.aws_fakes import REGION, Recorded, Said
from tests.unit.sagemaker.fake_container import FakeContainer


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    left = [thread for thread in threading.enumerate() if thread not in before]
    for thread in left:
        thread.join(5)
    assert not [thread for thread in left if thread.is_alive()]


@pytest.fixture
def container() -> Iterator[FakeContainer]:
    with FakeContainer() as fake:
        yield fake


@pytest.fixture(scope="session")
def make_client() -> Callable[[str], Any]:
    def make(url: str) -> Any:
        return boto3.session.Session().client(
            "sagemaker-runtime",
            endpoint_url=url,
            region_name="us-east-1",
            aws_access_key_id="any",
            aws_secret_access_key="any",
            config=botocore.config.Config(read_timeout=10, retries={"total_max_attempts": 1}),
        )

    return make


@pytest.fixture
def endpoint(container: FakeContainer) -> Iterator[LocalEndpoint]:
    with LocalEndpoint(EndpointConfig(container=container.address)) as local:
        yield local


@pytest.fixture
def client(endpoint: LocalEndpoint, make_client: Callable[[str], Any]) -> Iterator[Any]:
    made = make_client(endpoint.url)
    yield made
    made.close()


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.delenv("AWS_PROFILE", raising=False)


@pytest.fixture
def aws(credentials: None) -> Iterator[Any]:
    with moto.mock_aws():
        yield boto3.client("sagemaker", region_name=REGION)


@pytest.fixture
def said() -> Said:
    return Said()


@pytest.fixture
def recorded(credentials: None, said: Said) -> Recorded:
    tool = said.tool()

    def stub(service: str) -> tuple[Tool, botocore.stub.Stubber]:
        stubber = botocore.stub.Stubber(tool.aws.client(service))
        stubber.activate()
        return tool, stubber

    return stub


@pytest.fixture
def no_aws(monkeypatch: pytest.MonkeyPatch) -> None:
    """No credentials, no region, and no way to the network."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "/nowhere")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr("socket.socket.connect", refuse)
