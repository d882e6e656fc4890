"""What every source of weights shares: the promise to the runner, the checks of names and shapes, progress, figures.

Every tensor is taken once, and one that nobody takes is refused: a model that loads in part gives wrong tokens.
Must not know where the weights come from.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType, TracebackType
from typing import Protocol, Self

import torch

from engine.layers import Weights
from engine.loading.safetensors_header import StoredTensor

# (bytes so far, bytes in all), of the files.
OnProgress = Callable[[int, int], None]

_FLOATS: Mapping[str, torch.dtype] = MappingProxyType(
    {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
)


@dataclasses.dataclass(frozen=True, slots=True)
class LoadStatistics:
    """What was loaded, from so many files (0: made up), in the seconds since the source was opened."""

    num_bytes: int
    num_files: int
    seconds: float

    def __str__(self) -> str:
        """For the log."""
        source = f"from {self.num_files} file{'s'[: self.num_files != 1]}" if self.num_files else "made up"
        size_gb, rate = self.num_bytes / 1e9, self.num_bytes / 1e9 / max(self.seconds, 1e-9)
        return f"{size_gb:.2f} GB of weights {source} in {self.seconds:.2f} s, {rate:.2f} GB/s"


class WeightSource(Weights, Protocol):
    """`Weights` that the runner opens, gives to the model's builder, and finishes. A context manager."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the files; what was handed out stays."""
        ...

    def finish(self, harmless: tuple[str, ...] = ()) -> LoadStatistics:
        """Fill what was handed out: from here on the weights may be computed with, on the device's current stream.

        Raises ValueError, naming it, for a tensor that nobody took, unless its name ends in one of `harmless`; and for
        a file that cannot be read to its end.
        """
        ...


class Ledger:
    """Which of the stored tensors the model took. `stored`: None where any name of any shape can be had."""

    def __init__(self, stored: Mapping[str, StoredTensor] | None) -> None:
        self._stored = stored
        self._taken: set[str] = set()

    def take(self, name: str, shape: tuple[int, ...]) -> None:
        """Note that `name` is taken.

        Raises ValueError where it is missing, of another shape or of a type that is no float, or was taken before.
        """
        if name in self._taken:
            raise ValueError(f"the weight {name!r} was asked for twice")
        if self._stored is not None:
            self._check(name, shape, self._stored)
        self._taken.add(name)

    def check_all_taken(self, harmless: tuple[str, ...]) -> None:
        """See `WeightSource.finish`."""
        for name in self._stored or ():
            if name not in self._taken and not name.endswith(harmless):
                raise ValueError(f"the model has a weight {name!r} that its architecture does not know")

    def _check(self, name: str, shape: tuple[int, ...], stored: Mapping[str, StoredTensor]) -> None:
        if name not in stored:
            raise ValueError(f"the model has no weight {name!r}")
        found = stored[name]
        if found.shape != shape:
            raise ValueError(
                f"the weight {name!r} has the shape {list(found.shape)}, but config.json means {list(shape)}"
            )
        if found.dtype not in _FLOATS:
            raise ValueError(f"the weight {name!r} is of type {found.dtype}, which is not supported")


def float_type(tensor: StoredTensor) -> torch.dtype:
    """Torch's type of a tensor that a `Ledger` let pass."""
    return _FLOATS[tensor.dtype]


class Progress:
    """Tells how far a load is, at most every `interval_s`."""

    def __init__(self, total_bytes: int, on_progress: OnProgress | None, interval_s: float = 0.5) -> None:
        self.total_bytes = total_bytes
        self.start_s = time.monotonic()
        self._done_bytes = 0
        self._tell = on_progress
        self._interval_s = interval_s
        self._told_s = self.start_s

    def add(self, num_bytes: int) -> None:
        """So many more bytes are done."""
        self._done_bytes += num_bytes
        now = time.monotonic()
        if self._tell is not None and now - self._told_s >= self._interval_s:
            self._told_s = now
            self._tell(self._done_bytes, self.total_bytes)
