"""Keeps tiny models small: on one thread of a CPU, in a sliver of a GPU's memory."""

import pytest
import torch

from engine.api import EngineConfig

_GPU_CACHE_GIB = 1.0


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """On shared cores the barriers of two cost more than the arithmetic."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def a_small_cache_on_a_gpu():
    """A test that names no cache would take most of the GPU's memory for it, from the processes beside this one."""
    if not torch.cuda.is_available():
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(EngineConfig.__init__.__kwdefaults__, "kv_cache_memory_gib", _GPU_CACHE_GIB)
        yield
