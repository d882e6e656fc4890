"""What the Dockerfile says; `make image-test` builds it and starts it."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def instructions() -> list[tuple[str, str]]:
    """(instruction, arguments) of the last stage."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    pairs = [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]
    last = max(i for i, pair in enumerate(pairs) if pair[0] == "FROM")
    return [(pair[0], pair[1]) for pair in pairs[last:]]


def test_serve_is_the_command_in_exec_form_and_root_runs_it(instructions: list[tuple[str, str]]) -> None:
    given = dict(instructions)
    assert json.loads(given["CMD"]) == ["serve"]
    assert "ENTRYPOINT" not in given and "USER" not in given


def test_the_label_that_lets_the_platform_choose_the_port(instructions: list[tuple[str, str]]) -> None:
    labels = " ".join(arguments for name, arguments in instructions if name == "LABEL")
    assert "com.amazonaws.sagemaker.capabilities.accept-bind-to-port=true" in labels
    # True only when these are served.
    assert "multi-models" not in labels and "bidirectional-streaming" not in labels


def test_the_health_check_asks_ping_where_the_platform_puts_it(instructions: list[tuple[str, str]]) -> None:
    [check] = [arguments for name, arguments in instructions if name == "HEALTHCHECK"]
    assert "/ping" in check and "SAGEMAKER_BIND_TO_PORT" in check


def test_the_hosts_gpus_are_asked_for(instructions: list[tuple[str, str]]) -> None:
    # Without these NVIDIA's container runtime starts the image as if the host had no GPU.
    variables = " ".join(arguments for name, arguments in instructions if name == "ENV")
    assert "NVIDIA_VISIBLE_DEVICES=all" in variables
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility" in variables


def test_no_driver_comes_along(instructions: list[tuple[str, str]]) -> None:
    installed = " ".join(arguments for name, arguments in instructions if name in ("RUN", "ARG"))
    assert "nvidia-driver" not in installed and "libcuda" not in installed
