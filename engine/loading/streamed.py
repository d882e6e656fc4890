"""`StreamedWeights`: safetensors files read by several threads and copied to a device as they come (a GPU's).

While the model is built, each weight gets its memory on the device; `finish` reads the files through pinned buffers,
and what is read goes straight into its rows of the joined products. Must not know what a tensor is used for.
"""

import dataclasses
import time
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from engine.loading.chunks import Destination, ReadOptions, load_chunks, plan_chunks
from engine.loading.fused import FusedWeights
from engine.loading.source import Ledger, LoadStatistics, OnProgress, Progress, float_type
from engine.loading.uploader import Uploader, uploader_for
from engine.loading.weight_files import WeightFiles


@dataclasses.dataclass(frozen=True, slots=True)
class StreamOptions:
    """How `StreamedWeights` loads. uploader: None is the device's own. on_progress: called on `finish`'s thread."""

    read: ReadOptions = ReadOptions()
    uploader: Uploader | None = None
    on_progress: OnProgress | None = None


class StreamedWeights(FusedWeights):
    """A `WeightSource`: what it hands out holds nothing before `finish`."""

    def __init__(
        self, directory: Path, dtype: torch.dtype, device: torch.device, options: StreamOptions | None = None
    ) -> None:
        """Open the files. Raises ValueError where one is missing, damaged or repeats a name."""
        self._start_s = time.monotonic()
        self._files = WeightFiles(directory)
        super().__init__(Ledger({name: tensor for name, (_, tensor) in self._files.tensors.items()}), dtype, device)
        self._options = options or StreamOptions()
        self._destinations: dict[str, Destination] = {}

    def __enter__(self) -> "StreamedWeights":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._files.close()
        self._destinations.clear()  # they would keep the weights' memory when the model is gone

    def finish(self, harmless: tuple[str, ...] = ()) -> LoadStatistics:
        """See `WeightSource.finish`."""
        self._ledger.check_all_taken(harmless)
        options = self._options
        chunks = [
            chunk
            for file in self._files.files
            for chunk in plan_chunks(file, self._destinations, options.read.chunk_bytes)
        ]
        progress = Progress(sum(chunk.num_bytes for chunk in chunks), options.on_progress)
        uploader = options.uploader or uploader_for(self._device)
        try:
            load_chunks(chunks, uploader, options.read, progress.add)
        finally:
            # In any case: copies that still run write to memory that a failed load gives back.
            uploader.wait()
        seconds = time.monotonic() - self._start_s
        return LoadStatistics(progress.total_bytes, len(self._files.files), seconds)

    def _fill(self, name: str, target: Tensor) -> None:
        self._destinations[name] = Destination(target, float_type(self._files.tensors[name][1]))
