"""`MappedWeights`: safetensors files mapped into memory, for kernels that pack their own form of a weight (the CPU's).

What is packed is read once, straight from the page cache. Must not know what a tensor is used for.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.loading.source import Ledger, LoadStatistics, OnProgress, Progress
from engine.loading.weight_files import WeightFiles


class MappedWeights:
    """A `WeightSource` whose parts are views of the files where `dtype` is the files' own. They must not be written."""

    def __init__(self, directory: Path, dtype: torch.dtype, on_progress: OnProgress | None = None) -> None:
        """Map the files. Raises ValueError where one is missing, damaged or repeats a name."""
        self._dtype = dtype
        files = WeightFiles(directory)
        files.close()  # safetensors maps them itself
        stored = {name: tensor for name, (_, tensor) in files.tensors.items()}
        self._ledger = Ledger(stored)
        self._progress = Progress(sum(tensor.num_bytes for tensor in stored.values()), on_progress)
        maps = {file.path: _mapped(file.path) for file in files.files}
        self._owners: dict[str, Any] = {name: maps[file.path] for name, (file, _) in files.tensors.items()}
        self._num_files = len(files.files)

    def __enter__(self) -> "MappedWeights":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._owners.clear()

    def keep(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """See `Weights.keep`: a copy, since the pages of a mapped file come and go with the page cache."""
        return self._take(name, shape).to(self._dtype, copy=True)

    def parts(self, names: Sequence[tuple[str, int]], in_features: int) -> Sequence[Tensor]:
        """See `Weights.parts`: one tensor per name."""
        return [self._take(name, (rows, in_features)).to(self._dtype) for name, rows in names]

    def keep_joined(self, names: Sequence[tuple[str, int]]) -> Tensor:
        """See `Weights.keep_joined`."""
        return torch.cat([self._take(name, (rows,)).to(self._dtype) for name, rows in names])

    def finish(self, harmless: tuple[str, ...] = ()) -> LoadStatistics:
        """See `WeightSource.finish`: there is nothing left to fill."""
        self._ledger.check_all_taken(harmless)
        progress = self._progress
        return LoadStatistics(progress.total_bytes, self._num_files, time.monotonic() - progress.start_s)

    def _take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        self._ledger.take(name, shape)
        tensor: Tensor = self._owners[name].get_tensor(name)
        self._progress.add(tensor.nbytes)
        return tensor


def _mapped(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read as safetensors: {error}") from None
