"""The safetensors files of a model directory: which there are, what lies in them, and reading their bytes.

Never unpickles: a directory with only .bin files is refused. Must not know devices, or what a tensor is used for.
"""

import os
from pathlib import Path

from engine.loading.json_file import JsonFile
from engine.loading.safetensors_header import LENGTH_BYTES, StoredTensor, header_bytes, parse_header

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


class WeightFile:
    """One open safetensors file, its header read. Reads may come from several threads."""

    def __init__(self, path: Path) -> None:
        """Open `path` and read its header. Raises ValueError, naming it, where it cannot be read or is damaged."""
        self.path = path
        self._fd = -1
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            file_bytes = os.fstat(self._fd).st_size
            length = header_bytes(os.pread(self._fd, LENGTH_BYTES, 0), file_bytes)
            text = bytearray(length)
            self.read(memoryview(text), LENGTH_BYTES)
            # By name, in the order of their bytes.
            self.tensors: dict[str, StoredTensor] = parse_header(bytes(text), file_bytes)
        except (OSError, ValueError) as error:
            self.close()
            raise ValueError(f"{path} cannot be read as safetensors: {error}") from None

    def close(self) -> None:
        """Close it, once or more often."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def read(self, into: memoryview, offset: int) -> None:
        """Fill `into` with the bytes from `offset` on. Raises ValueError where they cannot be read, or are too few."""
        done = 0
        while done < len(into):
            try:
                count = os.preadv(self._fd, [into[done:]], offset + done)
            except OSError as error:
                raise ValueError(f"{self.path} cannot be read: {error}") from None
            if not count:
                raise ValueError(f"{self.path} ends at byte {offset + done}: it was cut while it was read")
            done += count

    def will_need(self, offset: int, num_bytes: int) -> None:
        """Ask the system to have these bytes in the page cache soon; it may not care."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._fd, offset, num_bytes, os.POSIX_FADV_WILLNEED)


class WeightFiles:
    """All files of a directory's weights, open until `close`.

    tensors: by name, the file that has it and where in it.
    """

    def __init__(self, directory: Path) -> None:
        """Open the files and list their tensors. Raises ValueError where one is missing, damaged or repeats a name."""
        self.files: list[WeightFile] = []
        self.tensors: dict[str, tuple[WeightFile, StoredTensor]] = {}
        try:
            for path in _paths(directory):
                file = WeightFile(path)
                self.files.append(file)
                for name, tensor in file.tensors.items():
                    if name in self.tensors:
                        raise ValueError(f"{directory}: the weight {name!r} is in two files")
                    self.tensors[name] = (file, tensor)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close all files, once or more often."""
        for file in self.files:
            file.close()


def _paths(directory: Path) -> list[Path]:
    if (directory / _SINGLE).exists():
        return [directory / _SINGLE]
    if not (directory / _INDEX).exists():
        raise ValueError(f"the model directory {directory} has neither {_SINGLE} nor {_INDEX}")
    weight_map = JsonFile.read(directory / _INDEX).fields.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{_INDEX}: 'weight_map' must be an object of weight and file names")
    names = sorted({str(name) for name in weight_map.values()})
    for name in names:
        # A plain file name only: an index must not point out of the model's directory.
        if Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
            raise ValueError(f"{_INDEX}: {name!r} is not the name of a .safetensors file beside it")
    return [directory / name for name in names]
