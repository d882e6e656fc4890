"""Weights in safetensors files, one or several with an index. The `Weights` that layers take from.

Every tensor is taken once, and one that nobody takes is refused: a model that loads in part gives wrong tokens.
Never unpickles: a directory with only .bin files is refused. Must not know what a tensor is used for.
"""

from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from engine.loading.json_file import JsonFile

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


class Checkpoint:
    """The tensors of a model directory by name, converted to `dtype` when they are taken.

    Files are mapped, not read: memory holds what the caller keeps. A context manager, which unmaps them.
    """

    def __init__(self, directory: Path, dtype: torch.dtype) -> None:
        """Open the files and list their tensors. Raises ValueError where one is missing, damaged or repeats a name."""
        self._dtype = dtype
        self._owner: dict[str, Any] = {}
        self._taken: set[str] = set()
        for path in _weight_files(directory):
            file = _open(path)
            for name in file.keys():  # noqa: SIM118 - a safetensors handle is no mapping
                if name in self._owner:
                    raise ValueError(f"{directory}: the weight {name!r} is in two files")
                self._owner[name] = file

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._owner.clear()

    def take(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """See `Weights.take`. Raises ValueError also for a type that is no float."""
        if name in self._taken:
            raise ValueError(f"the weight {name!r} was asked for twice")
        if name not in self._owner:
            raise ValueError(f"the model has no weight {name!r}")
        found = tuple(self._owner[name].get_slice(name).get_shape())
        if found != shape:
            raise ValueError(f"the weight {name!r} has the shape {list(found)}, but config.json means {list(shape)}")
        tensor: Tensor = self._owner[name].get_tensor(name)
        if tensor.dtype not in _FLOATS:
            raise ValueError(f"the weight {name!r} is of type {tensor.dtype}, which is not supported")
        self._taken.add(name)
        return tensor.to(self._dtype)

    def check_all_taken(self, harmless: tuple[str, ...] = ()) -> None:
        """Raise ValueError, naming it, for a tensor that nobody took, unless its name ends in one of `harmless`."""
        for name in self._owner:
            if name not in self._taken and not name.endswith(harmless):
                raise ValueError(f"the model has a weight {name!r} that its architecture does not know")


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read as safetensors: {error}") from None


def _weight_files(directory: Path) -> list[Path]:
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
