"""docs/sagemaker.md: no row of its tables is empty, and the tests that they name are there."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def rows() -> list[list[str]]:
    """The cells of every row that names a test, header and ruler left out."""
    lines = (ROOT / "docs/sagemaker.md").read_text().splitlines()
    tables = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return [cells for cells in tables if cells[-1] not in ("test", "---")]


def test_there_are_rows() -> None:
    assert len(rows()) > 70


@pytest.mark.parametrize("cells", rows(), ids=lambda cells: cells[0][:50])
def test_a_row_is_held_by_a_test_that_exists(cells: list[str]) -> None:
    assert all(cells)
    if cells[-1].startswith(("being built: ", "none: ")):
        return
    path, name = cells[-1].strip("`").split("::")
    module = ast.parse((ROOT / "tests" / path).read_text())
    assert name in {node.name for node in module.body if isinstance(node, ast.FunctionDef)}
