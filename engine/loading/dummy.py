"""`DummyWeights`: random weights of any model, to measure its speed without its files (`--load-format dummy`).

The same name and shape give the same numbers on the same kind of device. Must not know models.
"""

import hashlib
import time
from types import TracebackType

import torch
from torch import Tensor

from engine.loading.fused import FusedWeights
from engine.loading.source import Ledger, LoadStatistics

# As at the start of a training: activations stay finite however deep the model is, and outputs vary.
_STD = 0.02


class DummyWeights(FusedWeights):
    """A `WeightSource` of normal numbers: around 1 for the weights of norms, else around 0."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(Ledger(None), dtype, device)
        # The meta device has no memory: shapes alone are what its user wants.
        self._generator = None if device.type == "meta" else torch.Generator(device)
        self._num_bytes = 0
        self._start_s = time.monotonic()

    def __enter__(self) -> "DummyWeights":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        return

    def finish(self, harmless: tuple[str, ...] = ()) -> LoadStatistics:
        """See `WeightSource.finish`: nothing can be left over."""
        return LoadStatistics(self._num_bytes, 0, time.monotonic() - self._start_s)

    def _fill(self, name: str, target: Tensor) -> None:
        if self._generator is None:
            return
        seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
        # One generator for all: a pass over the memory is all that a tensor costs.
        self._generator.manual_seed(seed >> 1)
        is_norm = target.dim() == 1 and not name.endswith(".bias")
        target.normal_(1.0 if is_norm else 0.0, _STD, generator=self._generator)
        self._num_bytes += target.nbytes
