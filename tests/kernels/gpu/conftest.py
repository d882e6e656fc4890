"""The Triton kernels' tests run on a GPU where there is one, and in Triton's interpreter everywhere else.

The interpreter is chosen when a kernel is defined, so the variable must stand before the first import of one.
"""

import os
import sys

import pytest
import torch

HAS_GPU = torch.cuda.is_available()

if not HAS_GPU:
    is_late = "kernels.gpu.arithmetic" in sys.modules and "TRITON_INTERPRET" not in os.environ
    assert not is_late, "a test that was collected earlier imports the kernels: they are not for the interpreter"
    os.environ["TRITON_INTERPRET"] = "1"
    from tests.kernels.gpu import interpreter

    interpreter.install()

from kernels.gpu.hardware import KNOWN, Hardware, hardware_of  # noqa: E402


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if HAS_GPU else "cpu")


@pytest.fixture(scope="session")
def hardware(device: torch.device) -> Hardware:
    return hardware_of(device) if HAS_GPU else KNOWN[90]
