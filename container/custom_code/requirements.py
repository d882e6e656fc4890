"""What custom code needs installed with pip at the start, as the images of both contracts do.

Into this Python environment, so that what is there already counts. Knows pip's command line, where the contracts keep
requirements.txt, and the newer one's variables (aws/model-hosting-container-standards, common/dependency_manager.py).
Must not know what scripts do.
"""

import dataclasses
import fcntl
import importlib
import logging
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from container.custom_code.scripts import CustomCodeError, Scripts

log = logging.getLogger(__name__)

_FILE, _WHEELS = "requirements.txt", "requirements"
_NUM_SHOWN_LINES = 5


@dataclasses.dataclass(frozen=True)
class Install:
    """One `pip install`. what: for the log, since arguments may hold an index's password."""

    what: str
    arguments: list[str] = dataclasses.field(repr=False)


def wanted(scripts: Scripts, environment: Mapping[str, str], *, has_hooks: bool) -> list[Install]:
    """What must be installed before the scripts are imported.

    has_hooks: variables name functions that no script needs to hold. Raises CustomCodeError for arguments that cannot
    be told apart.
    """
    if environment.get("STANDARD_AUTO_INSTALL_REQ", "true").strip().lower() in ("false", "0", "no", "off"):
        return []
    found = []
    if scripts.toolkit is not None and (beside := scripts.toolkit.parent / _FILE).is_file():
        found.append(Install(str(beside), ["--requirement", str(beside)]))
    given = environment.get("STANDARD_PIP_ARGS", "").strip()
    if given:
        try:
            found.append(Install("STANDARD_PIP_ARGS", shlex.split(given)))
        except ValueError as error:
            raise CustomCodeError(f"STANDARD_PIP_ARGS: {error}") from None
    elif (scripts or has_hooks) and (path := scripts.root / _FILE).is_file():
        wheels = scripts.root / _WHEELS
        links = ["--find-links", str(wheels)] if wheels.is_dir() else []
        found.append(Install(str(path), ["--requirement", str(path), *links]))
    return found


def install(installs: Sequence[Install], lock: Path) -> None:
    """Run pip for each; several workers do so in turn, and the later ones find nothing to do.

    Call it in a native thread: it takes as long as pip does, or another worker's pip.
    Raises CustomCodeError with pip's last lines when it fails.
    """
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for one in installs:
            log.info("installing %s", one.what)
            command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", *one.arguments]
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
                raise CustomCodeError(f"cannot install {one.what}: {' | '.join(lines[-_NUM_SHOWN_LINES:])}")
    # What an import has once looked for in vain is not looked for again.
    importlib.invalidate_caches()
