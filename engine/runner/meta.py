"""`MetaDevice`: tensors without memory, so that steps only go through the motions. For compiling; knows no kernels."""

from collections.abc import Callable

import torch

from engine.runner.device import Finished, Graph, HostDevice, Pending, ResultT, Work


class _MetaGraph:
    """Work that is gone through again."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._work = work

    def replay(self) -> None:
        """See `Graph.replay`."""
        self._work()


class MetaDevice(HostDevice):
    """Work is done when it is given, and gives zeros."""

    torch_device = torch.device("meta")
    has_graphs = True

    def submit(self, work: Work) -> Pending:
        """See `Device.submit`."""
        return Finished(tuple(torch.zeros(x.shape, dtype=x.dtype) for x in work()))

    def capture(self, work: Callable[[], ResultT]) -> tuple[Graph, ResultT]:
        """See `Device.capture`."""
        return _MetaGraph(work), work()
