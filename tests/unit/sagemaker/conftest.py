"""A fake container, the endpoint in front of it, and a real boto3 client."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import boto3
import botocore.config
import pytest

from sagemaker.local import EndpointConfig, LocalEndpoint
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
