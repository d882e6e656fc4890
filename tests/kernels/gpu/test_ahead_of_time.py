"""Every kernel compiles for four architectures without a GPU, fits, and is what docs/kernels.md says it is."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import triton

from kernels.gpu.hardware import KNOWN
from tests.kernels.gpu.conftest import HAS_GPU

ROOT = Path(__file__).parents[3]
DOCUMENTED_VERSION = "3.7.1"

# A GPU compiles what it runs; the interpreter's process cannot compile what it interprets.
pytestmark = pytest.mark.skipif(HAS_GPU, reason="compiled by running")


def run(*arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "kernels.gpu.ahead_of_time", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def binaries() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(run())
    return found


@pytest.mark.timeout(1600)
def test_every_kernel_compiles_for_every_architecture_and_fits(binaries: list[dict[str, Any]]) -> None:
    kernels = {binary["kernel"] for binary in binaries}
    assert len(kernels) >= 12
    for kernel in kernels:
        assert {b["capability"] for b in binaries if b["kernel"] == kernel} == set(KNOWN), kernel
    for binary in binaries:
        assert binary["stack_bytes"] == binary["local_bytes"] == 0, binary
        assert binary["shared_bytes"] <= KNOWN[binary["capability"]].shared_memory_bytes, binary


def test_prefill_uses_hoppers_matrix_instructions(binaries: list[dict[str, Any]]) -> None:
    prefill = [b for b in binaries if "prefill" in b["kernel"] and "float32" not in b["case"]]
    assert prefill
    for binary in prefill:
        assert binary["has_wgmma"] == (binary["capability"] == 90), binary


@pytest.mark.skipif(triton.__version__ != DOCUMENTED_VERSION, reason="another compiler, other registers")
def test_the_table_of_the_page_is_generated(binaries: list[dict[str, Any]]) -> None:
    assert run("--markdown").strip() in (ROOT / "docs/kernels.md").read_text()
