"""`python -m sagemaker local`: its settings, and a container and the endpoint in front of it.

Must not know protocols.
"""

import argparse
import contextlib
import logging
import signal
import sys
import threading
import types
import urllib.parse
from pathlib import Path

from sagemaker.calls import ToolError
from sagemaker.container import (
    STARTUP_TIMEOUT_S,
    Address,
    ContainerFailed,
    LocalContainer,
    serve_command,
    wait_until_healthy,
)
from sagemaker.local import DEFAULT_MAX_PAYLOAD_BYTES, EndpointConfig, LocalEndpoint

_REPOSITORY = Path(__file__).resolve().parents[1]
_SHIPPED_MODEL = _REPOSITORY / "models" / "galley-tiny"
_WATCH_INTERVAL_S = 0.5


def run(settings: argparse.Namespace) -> None:
    """Serve until SIGTERM or Ctrl-C. Raises ToolError when the container or the port fails."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s: %(message)s", stream=sys.stderr)
    stop = threading.Event()

    def on_signal(number: int, frame: types.FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    try:
        _local(settings, stop)
    except (ContainerFailed, OSError) as error:
        raise ToolError(str(error)) from error


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command and its settings."""
    local = commands.add_parser(
        "local",
        help="a SageMaker endpoint on this machine, for an unmodified boto3 client",
        description="Answers the SageMaker Runtime API on 127.0.0.1 in front of a container: use "
        'boto3.client("sagemaker-runtime", endpoint_url="http://127.0.0.1:8081", region_name="us-east-1") '
        "with any credentials.",
    )
    source = local.add_mutually_exclusive_group()
    source.add_argument(
        "--model",
        type=Path,
        default=_SHIPPED_MODEL,
        metavar="DIR",
        help="start the repository's `serve` with this model, as SageMaker would its image (default: %(default)s)",
    )
    source.add_argument("--url", type=_address, help="use the container that runs at http://HOST:PORT instead")
    local.add_argument("--port", type=int, default=8081, help="port of 127.0.0.1; 0 takes a free one (default: 8081)")
    local.add_argument(
        "--endpoint-name",
        action="append",
        default=[],
        metavar="NAME",
        help="a name that the endpoint has; may be given several times (default: it has any name)",
    )
    local.add_argument("--invocation-timeout-s", type=_positive, default=60.0, help="SageMaker's is 60")
    local.add_argument("--stream-timeout-s", type=_positive, default=480.0, help="SageMaker's is 480")
    local.add_argument("--startup-timeout-s", type=_positive, default=STARTUP_TIMEOUT_S, help="SageMaker's is 480")
    local.add_argument(
        "--max-payload-mb",
        type=_positive,
        default=DEFAULT_MAX_PAYLOAD_BYTES / 2**20,
        help="largest request body in MiB; AWS's developer guide says 25, its API model 6 (default: %(default)g)",
    )
    local.add_argument(
        "--async-output",
        type=Path,
        metavar="DIR",
        help="where answers of InvokeEndpointAsync go (default: a directory that goes with the endpoint)",
    )
    local.set_defaults(run=run)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return value


def _address(text: str) -> Address:
    try:
        url = urllib.parse.urlsplit(text)
        if url.scheme == "http" and url.hostname and url.path in ("", "/") and not url.query:
            return Address(url.hostname, url.port or 80)
    except ValueError:
        # A port that is no number, or half an IPv6 address.
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not of the form http://HOST:PORT")


def _local(settings: argparse.Namespace, stop: threading.Event) -> None:
    with contextlib.ExitStack() as stack:
        container: LocalContainer | None = None
        address: Address
        if settings.url is not None:
            address = settings.url
        else:
            if not settings.model.is_dir():
                raise ContainerFailed(f"there is no model directory {settings.model}")
            container = stack.enter_context(LocalContainer(serve_command(_REPOSITORY), settings.model.resolve()))
            address = container.address
        config = EndpointConfig(
            container=address,
            endpoint_names=tuple(settings.endpoint_name),
            invocation_timeout_s=settings.invocation_timeout_s,
            stream_timeout_s=settings.stream_timeout_s,
            max_payload_bytes=int(settings.max_payload_mb * 2**20),
            async_directory=settings.async_output,
        )
        # A taken port shows before the container's long start; clients that come early wait.
        try:
            endpoint = LocalEndpoint(config, settings.port)
        except OSError as error:
            why = f"port {settings.port} of 127.0.0.1 cannot be listened to ({error.strerror or error})"
            raise ContainerFailed(f"{why}: give another --port, or 0 for a free one") from None
        stack.callback(endpoint.close)
        print(f"waiting for http://{address.host}:{address.port}/ping to answer 200", file=sys.stderr)
        healthy = wait_until_healthy(
            address,
            timeout_s=settings.startup_timeout_s,
            exit_status=container.exit_status if container else lambda: None,
            stopped=stop.wait,
        )
        if not healthy:
            return
        stack.enter_context(endpoint)
        print(
            f"Ready: SageMaker Runtime at {endpoint.url}, container at http://{address.host}:{address.port}", flush=True
        )
        while not stop.wait(_WATCH_INTERVAL_S):
            if container is not None and (status := container.exit_status()) is not None:
                raise ContainerFailed(f"the container ended with status {status}")
