"""The rows of docs/sagemaker.md, the tests that hold them, and the changes that take each row's feature away.

Knows the page and `removals.toml`. Must not know how a change is tried out: that is `check.py`.
"""

import dataclasses
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
# What a row says instead of a test, where there is nothing to hold.
NOTHING = "none: "


@dataclasses.dataclass(frozen=True)
class Removal:
    """A change that takes a feature away: in `file`, `new` in the place of `old`. rows: the first cells of its rows."""

    rows: tuple[str, ...]
    file: str
    old: str
    new: str

    def applied(self, text: str) -> str:
        """`text`, the file's, without the feature. Raises ValueError where `old` is not there exactly once."""
        if text.count(self.old) != 1:
            raise ValueError(f"{self.file}: {text.count(self.old)} times {self.old!r}, and it must be there once")
        return text.replace(self.old, self.new)


def rows() -> list[list[str]]:
    """The cells of every row that names a test, header and ruler left out."""
    lines = (ROOT / "docs/sagemaker.md").read_text().splitlines()
    tables = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return [cells for cells in tables if cells[-1] not in ("test", "---")]


def held_by() -> dict[str, str]:
    """The test of each row that has one, by the row's first cell: `tests/…/test_x.py::test_y`."""
    return {cells[0]: "tests/" + cells[-1].strip("`") for cells in rows() if not cells[-1].startswith(NOTHING)}


def removals() -> list[Removal]:
    """All of removals.toml."""
    content = tomllib.loads((ROOT / "tests/contract/removals.toml").read_text())
    return [Removal(tuple(one["rows"]), one["file"], one["old"], one["new"]) for one in content["removal"]]
