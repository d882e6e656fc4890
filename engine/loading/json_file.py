"""JSON objects of a model directory, and typed access to their fields.

Errors are ValueErrors of one line that name the file and the field. Must not know what a field means.
"""

import json
from pathlib import Path
from typing import Any


class JsonFile:
    """One JSON object, read whole."""

    def __init__(self, name: str, fields: dict[str, Any]) -> None:
        self.name = name
        self.fields = fields

    @classmethod
    def read(cls, path: Path) -> "JsonFile":
        """Raises ValueError where the file is missing or not a JSON object."""
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ValueError(f"the model directory {path.parent} has no {path.name}") from None
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} cannot be read: {error}") from None
        if not isinstance(fields, dict):
            raise ValueError(f"{path} does not hold a JSON object")
        return cls(path.name, fields)

    def integer(self, key: str, default: int | None = None, minimum: int = 1) -> int:
        """The int at `key`; the default where it is missing or null. Raises ValueError on anything else."""
        value = self.fields.get(key)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            raise ValueError(f"{self.name}: {key!r} must be an integer of at least {minimum}, not {value!r}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """The number at `key`, which must be finite; the default where it is missing or null."""
        value = self.fields.get(key)
        value = default if value is None else value
        if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < float("inf"):
            raise ValueError(f"{self.name}: {key!r} must be a number, not {value!r}")
        return float(value)

    def boolean(self, key: str, default: bool) -> bool:
        """The bool at `key`; the default where it is missing or null."""
        value = self.fields.get(key)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise ValueError(f"{self.name}: {key!r} must be true or false, not {value!r}")
        return value
