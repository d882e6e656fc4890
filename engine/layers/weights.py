"""Where layers get their weights from. Must not know files or devices."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class Weights(Protocol):
    """A model's tensors by name, in the dtype to compute in and on the device to compute on.

    Each name is asked for once. What is handed out may hold nothing until the load ends, when it is filled in place: a
    layer keeps it or packs it, and computes nothing with it while it is built. Every method raises ValueError, naming
    the tensor, when it is missing, has another shape or was asked for before.
    """

    def keep(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The tensor `name`, the layer's own from now on."""
        ...

    def parts(self, names: Sequence[tuple[str, int]], in_features: int) -> Sequence[Tensor]:
        """Matrices (name, rows), [rows, in_features] each, to be handed to `Kernels.pack_linear` at once.

        They come joined along their rows, in order, in as many or as few tensors as suits the device's kernels: on a
        GPU one, which is kept as it is. They may be a mapped file: nothing is written to them.
        """
        ...

    def keep_joined(self, names: Sequence[tuple[str, int]]) -> Tensor:
        """Vectors (name, size) as one, in order, the layer's own from now on."""
        ...
