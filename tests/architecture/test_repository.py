"""Tests about the repository itself: what its rules promise, held by looking at it."""

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("engine", "kernels", "container", "sagemaker")
MAX_FILE_LINES = 450
# Lines of Python that the product may have, tests and benchmarks apart: small enough to read in a day.
MAX_PRODUCT_LINES = 27_000
# One place of each may see the environment.
ENVIRONMENT_READERS = {"container/config.py"}


def product_files() -> Iterator[Path]:
    for package in PACKAGES:
        yield from sorted((ROOT / package).rglob("*.py"))


def compiled_files() -> Iterator[Path]:
    yield from sorted((ROOT / "kernels").rglob("*.[ch]"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_names() -> Iterator[str]:
    """Dotted names of all packages and modules, found without importing any: that is for each test to choose."""
    for path in product_files():
        if path.suffix == ".py":
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_files_stay_small() -> None:
    files = [*product_files(), *compiled_files(), *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    sizes = {relative(path): len(path.read_text().splitlines()) for path in files}
    assert {name: lines for name, lines in sizes.items() if lines > MAX_FILE_LINES} == {}


def test_the_product_stays_within_its_budget() -> None:
    files = [*product_files(), *compiled_files()]
    assert sum(len(path.read_text().splitlines()) for path in files) <= MAX_PRODUCT_LINES


@pytest.mark.parametrize("path", list(product_files()), ids=relative)
def test_module_docstring_and_no_forbidden_habits(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "a module says what it is for"
    for node in ast.walk(tree):
        assert not isinstance(node, ast.Global), f"line {node.lineno}: no `global`"
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name.split(".")[0] for alias in node.names} | {(getattr(node, "module", "") or "")}
            assert not names & {"pickle", "marshal", "shelve", "dill"}, f"line {node.lineno}: nothing is unpickled"
        reads_environment = isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "environb")
        if reads_environment and relative(path) not in ENVIRONMENT_READERS:
            owner = node.value
            assert not (isinstance(owner, ast.Name) and owner.id == "os"), f"line {node.lineno}: reads the environment"


@pytest.mark.parametrize("name", [n for n in module_names() if n.count(".") <= 1])
def test_all_is_sorted_and_true(name: str) -> None:
    path = ROOT / name.replace(".", "/")
    if not (path / "__init__.py").exists():
        return
    module = importlib.import_module(name)
    exported = getattr(module, "__all__", None)
    if exported is None:
        source = ast.parse((path / "__init__.py").read_text())
        assert len(source.body) <= 1, "an __init__ that exports names lists them in __all__"
        return
    assert len(set(exported)) == len(exported)
    for exported_name in exported:
        assert hasattr(module, exported_name)


@pytest.mark.parametrize(
    "module",
    [
        "engine.api",
        "engine.text",
        "engine.sequence",
        "engine.scheduler",
        "engine.kv_cache",
        "engine.core",
        "engine.process",
        "container.web",
        "container.supervisor",
    ],
)
def test_what_needs_no_tensors_loads_no_torch(module: str) -> None:
    """In a fresh interpreter, since this one may have loaded it."""
    code = f"import sys, {module}; sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'triton')))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def test_llm_is_named_lazily() -> None:
    code = "import sys, engine; assert 'torch' not in sys.modules; engine.LLM; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)


def test_transformers_does_not_take_our_kernels_for_its_own() -> None:
    code = "from transformers.utils import is_kernels_available; assert not is_kernels_available()"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)


def test_every_module_has_one_row_on_the_architecture_page() -> None:
    table = [line for line in (ROOT / "docs/architecture.md").read_text().splitlines() if line.startswith("|")]
    num_rows = {
        relative(path): sum(f"`{relative(path)}`" in line for line in table)
        for path in product_files()
        if path.name not in ("__init__.py", "__main__.py")
    }
    assert {path: count for path, count in num_rows.items() if count != 1} == {}


def test_every_link_between_documents_leads_somewhere() -> None:
    import re

    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "models").rglob("*.md")]
    broken = [
        f"{relative(page)}: {target}"
        for page in pages
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
        if not (page.parent / target).exists()
    ]
    assert broken == []
