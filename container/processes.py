"""Small facts about processes that the supervisor and its children share.

Knows Linux's prctl and logging's format. Must not know what the processes do.
"""

import ctypes
import logging
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1
_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029)}
LOG_FORMAT = "%(asctime)s %(levelname)s %(process)d %(name)s: %(message)s"


def die_with_parent(parent_pid: int, signal_number: int = signal.SIGTERM) -> None:
    """Get `signal_number` when the parent process ends, however it ends. Exits if it has already ended."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal_number)
    if os.getppid() != parent_pid:
        sys.exit(1)


class OneLineFormatter(logging.Formatter):
    """Control characters of a message are escaped: a caller's text in it can end no line and begin none of its own.

    Tracebacks, which are ours, keep their lines.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        """Called by logging for the line, before what follows it."""
        return super().formatMessage(record).translate(_ESCAPES)


def configure_logging(level: str) -> None:
    """One line per event on stderr, with a timestamp."""
    logging.basicConfig(level=level.upper(), stream=sys.stderr)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(OneLineFormatter(LOG_FORMAT))
