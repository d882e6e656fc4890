"""The header of a safetensors file: which tensors lie where. Every damage is one line of ValueError.

The format: 8 bytes of little-endian length, a JSON object of that length, then the tensors' bytes without a gap
(https://github.com/huggingface/safetensors, "Format"). Must not know files, or what a tensor is used for.
"""

import dataclasses
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit
# Bits of one element, by the format's name of its type.
_BITS: Mapping[str, int] = MappingProxyType(
    {
        **dict.fromkeys(("C64", "F64", "I64", "U64"), 64),
        **dict.fromkeys(("F32", "I32", "U32"), 32),
        **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
        **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "I8", "U8", "BOOL"), 8),
        **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
        "F4": 4,
    }
)


@dataclasses.dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a file: its type by the format's name, its shape, and its bytes [begin, end) of the whole file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def num_bytes(self) -> int:
        """Size in the file."""
        return self.end - self.begin


def header_bytes(start: bytes, file_bytes: int) -> int:
    """Length of the JSON object, from the file's first bytes. Raises ValueError where it cannot be one."""
    if len(start) < LENGTH_BYTES:
        raise ValueError("it is shorter than a header")
    length = int.from_bytes(start[:LENGTH_BYTES], "little")
    if length > MAX_HEADER_BYTES:
        raise ValueError(f"its header of {length} bytes is longer than the format allows")
    if length > file_bytes - LENGTH_BYTES:
        raise ValueError(f"its header of {length} bytes ends after the file's {file_bytes} bytes")
    return length


def parse_header(text: bytes, file_bytes: int) -> dict[str, StoredTensor]:
    """The tensors of a file of `file_bytes` by name, in the order of their bytes; `text` is its JSON object.

    Raises ValueError unless they fill the rest of the file exactly: without gap, overlap or remainder.
    """
    try:
        fields = json.loads(text.decode("utf-8"), object_pairs_hook=_without_repeats)
    except RecursionError:
        raise ValueError("its header is nested too deeply") from None
    if not isinstance(fields, dict):
        raise ValueError("its header is not a JSON object")
    _check_metadata(fields.pop("__metadata__", None))
    data_start = LENGTH_BYTES + len(text)
    tensors = {name: _tensor(name, value, data_start) for name, value in fields.items()}
    ordered = sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end))
    end = data_start
    for name, tensor in ordered:
        if tensor.begin != end:
            raise ValueError(f"the bytes of {name!r} do not begin where the tensor before it ends")
        end = tensor.end
    if end != file_bytes:
        raise ValueError(f"its tensors end at byte {end}, but the file has {file_bytes} bytes")
    return dict(ordered)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("its header has a name twice")
    return fields


def _check_metadata(value: Any) -> None:
    if value is not None and not (isinstance(value, dict) and all(isinstance(text, str) for text in value.values())):
        raise ValueError("its '__metadata__' is not an object of strings")


def _tensor(name: str, value: Any, data_start: int) -> StoredTensor:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"the entry {name!r} has not just 'dtype', 'shape' and 'data_offsets'")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise ValueError(f"{name!r} is of the unknown type {dtype!r}")
    if not _are_sizes(shape) or not _are_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"the shape or the offsets of {name!r} are not lists of sizes")
    num_bits = _BITS[dtype]
    for size in shape:
        num_bits *= size
    if num_bits != 8 * (offsets[1] - offsets[0]):
        raise ValueError(f"the shape of {name!r} does not fit the size of its bytes")
    return StoredTensor(dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])


def _are_sizes(value: Any) -> bool:
    # Beyond 63 bits nothing is a size; and the product of many such numbers would take long to compute.
    return (
        isinstance(value, list)
        and len(value) <= 64
        and all(isinstance(size, int) and not isinstance(size, bool) and 0 <= size < 2**63 for size in value)
    )
