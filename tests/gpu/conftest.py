"""What only a GPU can show: real sizes, offsets past 2^31, graphs, and that no launcher waits. Skipped elsewhere.

`benchmarks/gpu_check.py` runs these with torch, triton, numpy and pytest alone.
"""

import os
from collections.abc import Iterator

import pytest
import torch

HAS_GPU = torch.cuda.is_available()

if not HAS_GPU:
    # A kernel is made for the interpreter or for a GPU when it is defined. Were it these tests that import one first,
    # those of tests/kernels/gpu, which need the interpreter, would find the other form.
    os.environ["TRITON_INTERPRET"] = "1"

from kernels.gpu.hardware import Hardware, hardware_of  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def device() -> torch.device:
    """Every test asks for it, and so is skipped where there is no GPU."""
    if not HAS_GPU:
        pytest.skip("needs a GPU")
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture(scope="session")
def hardware(device: torch.device) -> Hardware:
    return hardware_of(device)


@pytest.fixture(autouse=True)
def memory_is_given_back(device: torch.device) -> Iterator[None]:
    """The next test may need all of it."""
    torch.manual_seed(0)
    yield
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
