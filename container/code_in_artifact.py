"""The supervisor's side of custom code: where the workers look for it, and how many workers there are beside it.

Knows files in the private run directory. Must not know what scripts do; it imports none.
"""

from pathlib import Path

from container.config import Settings
from container.custom_code.scripts import CustomCodeError, CustomCodeSettings, find_scripts


class CodeInArtifact:
    """`settings` is what the workers are told; `found` what they wait for."""

    def __init__(self, settings: Settings, run_dir: Path) -> None:
        self._settings = settings
        self._file = run_dir / "artifact"
        self.settings = CustomCodeSettings(artifact_file=str(self._file), environment=dict(settings.custom_code))
        self.num_workers = settings.server.num_workers

    def found(self, artifact: str | None) -> None:
        """Here lies the artifact; None while it is still to be downloaded."""
        if artifact is None:
            return
        # Scripts hold models of their own and count on being one process, as in the images that they come from.
        if self._has_script(Path(artifact)) and not self._settings.is_num_workers_given:
            self.num_workers = 1
        fresh = self._file.with_suffix(".new")
        fresh.write_text(artifact, encoding="utf-8")
        fresh.replace(self._file)

    def _has_script(self, artifact: Path) -> bool:
        try:
            return bool(find_scripts(artifact, self.settings.environment))
        except CustomCodeError:
            # The worker finds the same, says so and ends the start.
            return True
