"""`MetaDevice`: tensors without memory, so that steps only go through the motions. For compiling; knows no kernels."""

from collections.abc import Callable

import torch

from engine.runner.device import Finished, Graph, HostDevice, HostGraph, Pending, ResultT, Work


class MetaDevice(HostDevice):
    """Work is done when it is given, and gives zeros. A graph's replay goes through its work once more."""

    torch_device = torch.device("meta")
    has_graphs = True

    def submit(self, work: Work) -> Pending:
        """See `Device.submit`."""
        return Finished(tuple(torch.zeros(x.shape, dtype=x.dtype) for x in work()))

    def capture(self, work: Callable[[], ResultT]) -> tuple[Graph, ResultT]:
        """See `Device.capture`."""
        results = work()
        return HostGraph(work, results), results
