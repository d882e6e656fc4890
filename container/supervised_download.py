"""The supervisor's side of a download: what the downloading process is told, and what it leaves behind.

Knows files in the private run directory. Must not know how anything is downloaded, or processes.
"""

import dataclasses
import os
from pathlib import Path

import msgspec

from container.config import Settings
from container.model_source.source import parse_remote


@dataclasses.dataclass(frozen=True, kw_only=True)
class DownloadSettings:
    """What the supervisor writes for `python -m container.model_source`. parent_pid: the process with which to die."""

    model: str
    revision: str | None
    hf_token: str | None = dataclasses.field(repr=False)
    download_dir: str | None
    socket_path: str
    result_path: str
    log_level: str
    parent_pid: int | None = None


@dataclasses.dataclass(frozen=True)
class Downloaded:
    """What the process leaves behind. name: what the model is called where the operator says nothing.

    artifact_dir: all that was downloaded; model_dir is it or a directory in it.
    """

    artifact_dir: str
    model_dir: str
    name: str


class Download:
    """One model that is to be downloaded before the engine can start."""

    def __init__(self, settings: Settings, run_dir: Path, socket_path: str) -> None:
        self._settings = settings
        self._socket_path = socket_path
        self._result_path = run_dir / "model.json"
        self._settings_path = run_dir / "download.json"

    def write_settings(self) -> str:
        """Write the file for a new process; its path. Only this user can read the directory."""
        server = self._settings.server
        settings = DownloadSettings(
            model=self._settings.engine.model,
            revision=server.revision,
            hf_token=server.hf_token,
            download_dir=server.download_dir,
            socket_path=self._socket_path,
            result_path=str(self._result_path),
            log_level=server.log_level,
            parent_pid=os.getpid(),
        )
        self._settings_path.write_bytes(msgspec.json.encode(settings))
        return str(self._settings_path)

    def result(self) -> Downloaded:
        """What the process has left when it ended with 0."""
        return msgspec.json.decode(self._result_path.read_bytes(), type=Downloaded)


def needed_download(settings: Settings, run_dir: Path, socket_path: str) -> Download | None:
    """The download that must come before the engine; None for a local model. Raises ModelSourceError."""
    if parse_remote(settings.engine.model) is None:
        return None
    return Download(settings, run_dir, socket_path)
