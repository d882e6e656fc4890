"""`open_weights`: which source of weights a load uses. Must not know models."""

from pathlib import Path
from typing import Literal

import torch

from engine.loading.dummy import DummyWeights
from engine.loading.mapped import MappedWeights
from engine.loading.source import OnProgress, WeightSource
from engine.loading.streamed import StreamedWeights, StreamOptions


def open_weights(
    load_format: Literal["auto", "dummy"],
    directory: Path,
    dtype: torch.dtype,
    device: torch.device,
    on_progress: OnProgress | None = None,
) -> WeightSource:
    """The weights of the model in `directory`, in `dtype` on `device`; a context manager.

    "dummy" reads no file. On a CPU, whose kernels pack a form of their own, files are mapped; elsewhere streamed.
    Raises ValueError, of one line, where a file is missing, damaged or repeats a name.
    """
    if load_format == "dummy":
        return DummyWeights(dtype, device)
    if device.type == "cpu":
        return MappedWeights(directory, dtype, on_progress)
    return StreamedWeights(directory, dtype, device, StreamOptions(on_progress=on_progress))
