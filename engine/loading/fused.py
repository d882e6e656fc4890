"""What sources share that own the memory of the weights: one tensor for each joined product, allocated at once.

The kernels of a GPU take a weight as it lies, so a product of several parts is one tensor from the start, and each
part is written into its rows. Must not know where the bytes come from.
"""

import abc
from collections.abc import Sequence

import torch
from torch import Tensor

from engine.loading.source import Ledger


class FusedWeights(abc.ABC):
    """`Weights` in tensors of `dtype` on `device`, which a subclass fills, at once or when the load ends."""

    def __init__(self, ledger: Ledger, dtype: torch.dtype, device: torch.device) -> None:
        self._ledger = ledger
        self._dtype = dtype
        self._device = device

    def keep(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """See `Weights.keep`."""
        self._ledger.take(name, shape)
        tensor = torch.empty(shape, dtype=self._dtype, device=self._device)
        self._fill(name, tensor)
        return tensor

    def parts(self, names: Sequence[tuple[str, int]], in_features: int) -> Sequence[Tensor]:
        """See `Weights.parts`: one tensor of all rows."""
        return [self._joined(names, (in_features,))]

    def keep_joined(self, names: Sequence[tuple[str, int]]) -> Tensor:
        """See `Weights.keep_joined`."""
        return self._joined(names, ())

    def _joined(self, names: Sequence[tuple[str, int]], row_shape: tuple[int, ...]) -> Tensor:
        # Names and shapes first: a part that is wrong is refused before memory is asked for.
        for name, rows in names:
            self._ledger.take(name, (rows, *row_shape))
        shape = (sum(rows for _, rows in names), *row_shape)
        tensor = torch.empty(shape, dtype=self._dtype, device=self._device)
        first = 0
        for name, rows in names:
            self._fill(name, tensor[first : first + rows])
            first += rows
        return tensor

    @abc.abstractmethod
    def _fill(self, name: str, target: Tensor) -> None:
        """Write the tensor `name` into `target`, contiguous and of its shape, now or in `finish`."""
