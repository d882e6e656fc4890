"""Small facts about processes that the supervisor and its children share.

Knows Linux's prctl and logging's format. Must not know what the processes do.
"""

import ctypes
import logging
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
LOG_FORMAT = "%(asctime)s %(levelname)s %(process)d %(name)s: %(message)s"


def die_with_parent(parent_pid: int, signal_number: int = signal.SIGTERM) -> None:
    """Get `signal_number` when the parent process ends, however it ends. Exits if it has already ended."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal_number)
    if os.getppid() != parent_pid:
        sys.exit(1)


def configure_logging(level: str) -> None:
    """One line per event on stderr, with a timestamp."""
    logging.basicConfig(level=level.upper(), format=LOG_FORMAT, stream=sys.stderr)
