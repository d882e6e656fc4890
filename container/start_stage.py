"""What happens before there is an engine to ask: the supervisor writes it into a file, /ping of every worker reads it.

The file lies beside the engine's socket. Must not know what the stages are.
"""

import contextlib
from pathlib import Path

_MAX_CHARS = 200


def tell(engine_socket: str | Path, stage: str) -> None:
    """Let /ping say `stage`, for people, while no engine is connected. Raises OSError."""
    file = _file(engine_socket)
    draft = file.with_name(file.name + ".new")
    draft.write_text(stage[:_MAX_CHARS], encoding="utf-8")
    draft.replace(file)  # at once: nobody reads half of it


def told(engine_socket: str | Path) -> str:
    """What was told last; empty when nothing was."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return _file(engine_socket).read_text(encoding="utf-8")
    return ""


def _file(engine_socket: str | Path) -> Path:
    return Path(f"{engine_socket}.stage")
