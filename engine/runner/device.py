"""What the runner asks of a device besides tensors: work in order, results on the host, graphs. And the CPU's form.

`Device` is the one seam between the runner and a GPU's streams, events, pinned memory and graphs: `engine.runner.cuda`
has those, `HostDevice` computes at once, and tests have one that computes as late as it may. Must not know models.
"""

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

ResultT = TypeVar("ResultT")
Work = Callable[[], tuple[Tensor, ...]]


class Pending(Protocol):
    """Work that the device has been given."""

    def wait(self) -> tuple[Tensor, ...]:
        """Its results in the host's memory, once they are there; the same ones each time. Raises what it raised."""
        ...

    def settle(self) -> None:
        """Wait until it needs the host's memory no more, whatever has become of it."""
        ...


class Graph(Protocol):
    """Work that was recorded, with the addresses of all that it reads and writes."""

    def replay(self) -> None:
        """Do it again, in order with other work. What it reads may have other contents by now."""
        ...


class Device(Protocol):
    """A device that does work in the order in which it is given, possibly later."""

    torch_device: torch.device
    has_graphs: bool

    def host_words(self, num_words: int) -> Tensor:
        """Zeros int32 [num_words] in host memory from which the device copies without holding up the host."""
        ...

    def submit(self, work: Work) -> Pending:
        """Give the device work. It must not touch host memory, but for `host_words` that stay as they are meanwhile.

        Where work fails after this has returned, what was given behind it is dropped, up to `recover`: it would compute
        with what the failed work should have left. (A GPU that fails so late does nothing any more; running out of
        memory is found before this returns.)
        """
        ...

    def capture(self, work: Callable[[], ResultT]) -> tuple[Graph, ResultT]:
        """Record what `work` would do, which must have run before, and return it with what `work` returned.

        Nothing of it has been computed yet: a replay does, into the same tensors.
        """
        ...

    def recover(self) -> None:
        """After a failure: wait for what is under way, and give back memory that is only kept. Raises if it is gone."""
        ...


class Finished:
    """Work that is done."""

    def __init__(self, results: tuple[Tensor, ...]) -> None:
        self._results = results

    def wait(self) -> tuple[Tensor, ...]:
        """See `Pending.wait`."""
        return self._results

    def settle(self) -> None:
        """See `Pending.settle`."""


class HostGraph:
    """Work that is simply done again, its results copied to where the first ones lay."""

    def __init__(self, work: Callable[[], Any], results: Any) -> None:
        self._work = work
        self._results = results

    def replay(self) -> None:
        """See `Graph.replay`."""
        for place, result in zip(as_tensors(self._results), as_tensors(self._work()), strict=True):
            place.copy_(result)


class HostDevice:
    """The CPU: work is done when it is given. Graphs gain nothing here; they are there for tests."""

    torch_device = torch.device("cpu")
    has_graphs = False

    def host_words(self, num_words: int) -> Tensor:
        """See `Device.host_words`."""
        return torch.zeros(num_words, dtype=torch.int32)

    def submit(self, work: Work) -> Pending:
        """See `Device.submit`."""
        return Finished(work())

    def capture(self, work: Callable[[], ResultT]) -> tuple[Graph, ResultT]:
        """See `Device.capture`."""
        results = work()
        return HostGraph(work, results), results

    def recover(self) -> None:
        """Nothing is ever under way."""


def as_tensors(results: Any) -> tuple[Tensor, ...]:
    """What recorded work returned, a tensor or a tuple of them, as a tuple."""
    return (results,) if isinstance(results, Tensor) else tuple(results)
