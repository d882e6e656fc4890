"""Where layers get their weights from. Must not know files."""

from typing import Protocol

from torch import Tensor


class Weights(Protocol):
    """A checkpoint's tensors by name."""

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The tensor `name` in the dtype to compute in; it may be a mapped file, so what is kept is copied, and
        nothing is written to it.

        Raises ValueError, naming it, when it is missing, has another shape, or was taken before.
        """
        ...
