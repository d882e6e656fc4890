"""`make contract-check`: does each row's test fail when the row's feature is taken away?

Every change of removals.toml is made in a copy of the tree, and the tests of its rows are run there: each must fail by
an assertion of its own or by what it raises, not because nothing could be imported. Before that they must all pass on
the unchanged copy. Ends with one line per row that does not hold; exit code 1 if there are any.

    .venv/bin/python -m tests.contract.check [WORDS OF A ROW …]
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.contract.table import ROOT, Removal, held_by, removals

TIMEOUT_S = 600
_TESTS_FAILED = 1  # pytest's exit code; what cannot be imported or found has another


def copy_of_the_tree(directory: Path) -> Path:
    """All that git tracks or would, in `directory`."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, directory / name)
    return directory


def run(tree: Path, names: list[str]) -> tuple[int, str]:
    """pytest's exit code and output for these tests of the tree."""
    command = [sys.executable, "-m", "pytest", "-x", "-rf", "--tb=line", "-p", "no:cacheprovider", *names]
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            command, cwd=tree, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return -1, f"not over within {TIMEOUT_S} s"
    return done.returncode, done.stdout + done.stderr


def is_held(tree: Path, removal: Removal, test: str) -> bool:
    """Whether the test fails without the feature."""
    code, output = run(tree, [test])
    return code == _TESTS_FAILED and "\nFAILED " in output


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.contract.check", description=__doc__.splitlines()[0])
    parser.add_argument("words", nargs="*", help="only the rows in whose first cell one of these words stands")
    words = parser.parse_args().words
    by_row = held_by()
    wanted = [row for row in by_row if not words or any(word in row for word in words)]
    bad = []
    with tempfile.TemporaryDirectory(prefix="contract-") as directory:
        tree = copy_of_the_tree(Path(directory))
        code, output = run(tree, sorted({by_row[row] for row in wanted}))
        if code != 0:
            print(output)
            print("the tests do not pass on the tree as it is")
            return 1
        for removal in removals():
            rows = [row for row in removal.rows if row in wanted]
            if not rows:
                continue
            file = tree / removal.file
            text = file.read_text()
            file.write_text(removal.applied(text))
            try:
                for test in sorted({by_row[row] for row in rows}):
                    held = is_held(tree, removal, test)
                    line = f"{'held' if held else 'NOT HELD'}: {' / '.join(rows)} by {test}, without {removal.old!r}"
                    print(line.replace("\n", " "), flush=True)
                    if not held:
                        bad.append(line)
            finally:
                file.write_text(text)
    print(f"{len(wanted)} rows, {len(bad)} not held")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
