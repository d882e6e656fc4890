"""`CudaDevice`: streams, events, pinned memory and CUDA graphs behind `Device`. The only module that calls torch.cuda.

Kernels go to the current stream, one after the other. Results go to the host on a second stream, so that the next
step's kernels do not wait for a copy. Must not know models, sequences or steps.
"""

import contextlib
import gc
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from engine.runner.device import Pending, ResultT, Work


class Memory(NamedTuple):
    """The device's memory in bytes: of everything on it, and what torch's tensors take of that."""

    free: int
    total: int
    allocated: int


class CudaPending:
    """Results on their way. Keeps the device's tensors alive until the copies are done."""

    def __init__(self, results: tuple[Tensor, ...], host: tuple[Tensor, ...], copied: torch.cuda.Event) -> None:
        self._results = results
        self._host = host
        self._copied = copied

    def wait(self) -> tuple[Tensor, ...]:
        """See `Pending.wait`: waits for this step's copies, and not for the steps after it."""
        self._copied.synchronize()
        self._results = ()
        return self._host

    def settle(self) -> None:
        """See `Pending.settle`."""
        self._copied.synchronize()


class CudaDevice:
    """One GPU. For one thread, the one that makes it."""

    has_graphs = True

    def __init__(self, index: int = 0) -> None:
        self.torch_device = torch.device("cuda", index)
        torch.cuda.set_device(self.torch_device)
        self._copies = torch.cuda.Stream(self.torch_device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def host_words(self, num_words: int) -> Tensor:
        """See `Device.host_words`: pinned, or a copy to the device would be made by the host."""
        return torch.zeros(num_words, dtype=torch.int32, pin_memory=True)

    def submit(self, work: Work) -> Pending:
        """See `Device.submit`. Nothing in here waits for the device."""
        results = work()
        self._copies.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._copies):
            # Pinned memory comes from torch's cache, which hands a piece out again only when its copies are done.
            host = tuple(torch.empty(x.shape, dtype=x.dtype, pin_memory=True) for x in results)
            for to, result in zip(host, results, strict=True):
                to.copy_(result, non_blocking=True)
            # A blocking event: the engine's thread sleeps while it waits, and leaves the interpreter to the others.
            copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            copied.record(self._copies)
        return CudaPending(results, host, copied)

    def capture(self, work: Callable[[], ResultT]) -> tuple[torch.cuda.CUDAGraph, ResultT]:
        """See `Device.capture`. All graphs share one pool: they never run side by side."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            results = work()
        return graph, results

    def recover(self) -> None:
        """See `Device.recover`."""
        torch.cuda.synchronize()
        gc.collect()  # a traceback may hold the failed step's tensors
        torch.cuda.empty_cache()

    def memory(self) -> Memory:
        """What is free now, with nothing only kept by torch."""
        torch.cuda.synchronize()
        gc.collect()
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info(self.torch_device)
        return Memory(free, total, torch.cuda.memory_allocated(self.torch_device))

    def drop_graphs(self) -> None:
        """Start a new pool, once the graphs of the old one are gone: their memory is then given back."""
        self._pool = torch.cuda.graph_pool_handle()
        self.recover()

    @contextlib.contextmanager
    def peak(self) -> Iterator[Callable[[], int]]:
        """Watch the most bytes that tensors take inside, more than before; the given function tells it afterwards."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats(self.torch_device)
        before = torch.cuda.memory_allocated(self.torch_device)
        yield lambda: torch.cuda.max_memory_allocated(self.torch_device) - before
        torch.cuda.synchronize()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device had no room: for a tensor, for cuBLAS or for a kernel, which have no error of their own.

    A CPU's allocator raises RuntimeError too, and numpy's MemoryError.
    """
    words = ("ALLOC_FAILED", "out of memory", "can't allocate memory")
    is_named = isinstance(error, torch.cuda.OutOfMemoryError | MemoryError)
    return is_named or any(word in str(error) for word in words)


# The first driver that runs a major version of CUDA (NVIDIA's CUDA release notes, "CUDA driver"), and the newest of
# SageMaker's AMIs (InferenceAmiVersion in its API) that has one.
_DRIVERS = {"12": (525, "al2-ami-sagemaker-inference-gpu-3-1"), "13": (580, "al2023-ami-sagemaker-inference-gpu-4-1")}


class MissingGpu(NamedTuple):
    """Why torch finds no GPU, in one line. is_driver_old: the host has one, and meant it to be used."""

    reason: str
    is_driver_old: bool = False


def missing_gpu(
    driver_file: Path = Path("/proc/driver/nvidia/version"), cuda: str | None = torch.version.cuda
) -> MissingGpu | None:
    """What keeps torch from the GPU of a host that has an NVIDIA driver; None where the host has none.

    cuda: the version that torch was built for; None is a build without.
    """
    try:
        found = re.search(r"NVIDIA.*?\s(\d+)\.\d", driver_file.read_text())
    except OSError:
        return None
    driver = found.group(1) if found else "?"
    if cuda is None:
        return MissingGpu(f"the host has an NVIDIA driver ({driver}), but this torch was built without CUDA")
    needed, ami = _DRIVERS.get(cuda.partition(".")[0], (0, ""))
    if found and int(driver) < needed:
        return MissingGpu(
            f"the host's NVIDIA driver {driver} is too old for CUDA {cuda}, which needs {needed}: on SageMaker choose "
            f"InferenceAmiVersion {ami}, elsewhere update the driver, or use the image with an older CUDA",
            is_driver_old=True,
        )
    return MissingGpu(f"the host has NVIDIA driver {driver}, but no GPU is seen here: containers need `--gpus all`")
