"""A device that computes as late as it may: what a GPU may do at worst, so that tests find who relies on less.

Work waits until somebody needs what it gives. By then the host may have changed whatever it is free to change.
"""

from collections.abc import Callable

from torch import Tensor

from engine.runner.device import Graph, HostDevice, HostGraph, Pending, ResultT, Work


class LatePending:
    def __init__(self, device: "LateDevice", work: Work) -> None:
        self.device = device
        self.work: Work | None = work
        self.results: tuple[Tensor, ...] | None = None
        self.error: Exception | None = None

    def run(self) -> None:
        work, self.work = self.work, None
        assert work is not None
        if self.device.has_failed:
            self.error = RuntimeError("dropped: the work before it failed")
            return
        try:
            # A copy, as a GPU's results are: the host's memory is not the device's.
            self.results = tuple(result.clone() for result in work())
        except Exception as error:  # noqa: BLE001 - whoever waits gets it
            self.error = error
            self.device.has_failed = True

    def settle(self) -> None:
        self.device.run_until(self)

    def wait(self) -> tuple[Tensor, ...]:
        self.settle()
        if self.error is not None:
            raise self.error
        assert self.results is not None
        return self.results


class LateDevice(HostDevice):
    """Counts what it was given. most_waiting: the most work that has waited at a time."""

    has_graphs = True

    def __init__(self) -> None:
        self.waiting: list[LatePending] = []
        self.has_failed = False
        self.most_waiting = 0
        self.num_replays = 0

    def submit(self, work: Work) -> Pending:
        pending = LatePending(self, work)
        self.waiting.append(pending)
        self.most_waiting = max(self.most_waiting, len(self.waiting))
        return pending

    def run_until(self, last: LatePending) -> None:
        while last.work is not None:
            self.waiting.pop(0).run()

    def capture(self, work: Callable[[], ResultT]) -> tuple[Graph, ResultT]:
        self.recover()
        results = work()
        return CountedGraph(self, HostGraph(work, results)), results

    def recover(self) -> None:
        while self.waiting:
            self.waiting.pop(0).run()
        self.has_failed = False


class CountedGraph:
    def __init__(self, device: LateDevice, graph: Graph) -> None:
        self.device = device
        self.graph = graph

    def replay(self) -> None:
        self.device.num_replays += 1
        self.graph.replay()
