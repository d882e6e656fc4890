"""What a start measures on a GPU before it sizes the cache, on a CPU that stands in for one."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.api import EngineConfig
from engine.runner import load_runner
from engine.runner.cuda import CudaDevice, Memory
from engine.runner.device import Graph, HostDevice, Pending, ResultT, Work
from tests.model.tiny_models import make_qwen3

GIB = 2**30
STEP_BYTES = GIB


class StandIn(CudaDevice):
    """Computes at once on the CPU. Of 10 GiB, 4 are taken; each size's two graphs take more until they are dropped."""

    torch_device = torch.device("cpu")

    def __init__(self, size_bytes: int = GIB // 8) -> None:
        self._size_bytes = size_bytes
        self._host = HostDevice()
        self.num_graphs = 0
        self.num_at_drop: list[int] = []

    def host_words(self, num_words: int) -> torch.Tensor:
        return self._host.host_words(num_words)

    def submit(self, work: Work) -> Pending:
        return self._host.submit(work)

    def capture(self, work: Callable[[], ResultT]) -> tuple[Graph, ResultT]:  # type: ignore[override]
        self.num_graphs += 1
        return self._host.capture(work)

    def recover(self) -> None:
        pass

    def memory(self) -> Memory:
        return Memory(free=6 * GIB - self.num_graphs // 2 * self._size_bytes, total=10 * GIB, allocated=0)

    def drop_graphs(self) -> None:
        self.num_at_drop.append(self.num_graphs)
        self.num_graphs = 0

    @contextlib.contextmanager
    def peak(self) -> Iterator[Callable[[], int]]:
        yield lambda: STEP_BYTES


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("qwen3")
    make_qwen3(path)
    return path


def start(directory: Path, device: StandIn, **settings: Any) -> Any:
    given: dict[str, Any] = {"dtype": "float32", "max_num_seqs": 20, "max_num_batched_tokens": 64}
    return load_runner(EngineConfig(model=str(directory), **(given | settings)), lambda stage: None, device)[0]


def test_two_sizes_are_measured_and_all_recorded(directory: Path) -> None:
    device = StandIn()
    runner = start(directory, device)
    assert runner.graph_sizes == (1, 2, 4, 8, 16, 20)
    assert device.num_at_drop == [4], "two graphs of each of the two largest sizes"
    assert device.num_graphs == 2 * len(runner.graph_sizes)


def test_a_step_of_fewer_tokens_than_sequences_is_never_recorded_larger(directory: Path) -> None:
    device = StandIn()
    runner = start(directory, device, max_num_batched_tokens=6)
    assert runner.graph_sizes == (1, 2, 4, 6)
    assert device.num_graphs == 8


def test_what_is_measured_leaves_no_room(directory: Path) -> None:
    # Of 9 GiB 4 are taken, a step takes 1, and of six sizes the largest two take 1 each: the others as much again.
    with pytest.raises(ValueError, match=r"of 9.0 GiB .* take 4.0, a step of 64 tokens 1.0 and CUDA graphs 6.0"):
        start(directory, StandIn(GIB))
