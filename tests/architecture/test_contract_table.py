"""docs/sagemaker.md: no row of its tables is empty, the tests that they name are there, and each can fail."""

import ast

import pytest

from tests.contract.table import NOTHING, ROOT, Removal, held_by, removals, rows


def test_there_are_rows() -> None:
    assert len(rows()) > 75
    assert len({cells[0] for cells in rows()}) == len(rows()), "a row is known by its first cell"


@pytest.mark.parametrize("cells", rows(), ids=lambda cells: cells[0][:50])
def test_a_row_is_held_by_a_test_that_exists(cells: list[str]) -> None:
    assert all(cells)
    if cells[-1].startswith(NOTHING):
        return
    path, name = cells[-1].strip("`").split("::")
    module = ast.parse((ROOT / "tests" / path).read_text())
    assert name in {node.name for node in module.body if isinstance(node, ast.FunctionDef)}


def test_every_row_with_a_test_has_a_removal() -> None:
    """`make contract-check` tries them out."""
    assert {row for removal in removals() for row in removal.rows} == set(held_by())


@pytest.mark.parametrize("removal", removals(), ids=lambda removal: removal.rows[0][:50])
def test_a_removal_still_fits_its_file(removal: Removal) -> None:
    changed = removal.applied((ROOT / removal.file).read_text())
    if removal.file.endswith(".py"):
        ast.parse(changed)
