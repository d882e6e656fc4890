"""`requirements.txt` beside a script, installed with pip at the start, as the toolkit's images do.

Into this Python environment, so that what is there already counts. Knows pip's command line. Must not know scripts.
"""

import fcntl
import importlib
import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from container.custom_code.scripts import CustomCodeError

log = logging.getLogger(__name__)

_NUM_SHOWN_LINES = 5


def install(files: Sequence[Path], lock: Path) -> None:
    """Install all of them; several workers do so one after the other, and the later ones find nothing to do.

    Call it in a native thread: it takes as long as pip does, or another worker's pip.
    Raises CustomCodeError with pip's last lines when it fails.
    """
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for path in files:
            log.info("installing %s", path)
            command = [
                sys.executable,
                "-m",
                "pip",
                "install",
                "--disable-pip-version-check",
                "--requirement",
                str(path),
            ]
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
                raise CustomCodeError(f"cannot install {path}: {' | '.join(lines[-_NUM_SHOWN_LINES:])}")
    # What an import has once looked for in vain is not looked for again.
    importlib.invalidate_caches()
