"""Downloaded models on this machine's disk: a directory with room, and records of what is whole.

Of a model `key` the store holds `<key>/`, its files; `<key>.partial.json`, what a running download wants to have; and
`<key>.complete.json`, the same once every file is there. A file under its final name is whole at any time.

Knows files and free space. Must not know where models come from.
"""

import contextlib
import dataclasses
import fcntl
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from container.model_source.source import ModelSourceError

# SageMaker's model directory: read-only, and "do not write to this directory".
_MODEL_MOUNT = Path("/opt/ml/model")
_SPARE_BYTES = 256 * 2**20
_LOCK_POLL_S = 0.5
PART_SUFFIX = ".part"


@dataclasses.dataclass(frozen=True)
class RemoteFile:
    """size in bytes; etag: whatever changes with the content."""

    size: int
    etag: str


Manifest = Mapping[str, RemoteFile]


class Place:
    """Where one model lies, or will lie, in one directory of downloads."""

    def __init__(self, base: Path, key: str) -> None:
        self.base = base
        self.directory = base / key
        self._complete = base / f"{key}.complete.json"
        self._partial = base / f"{key}.partial.json"
        self._lock = base / f"{key}.lock"

    def is_complete(self, manifest: Manifest | None = None) -> bool:
        """Whether all files of a finished download are there, and are those of `manifest` where one is given."""
        recorded = _read(self._complete)
        if recorded is None or (manifest is not None and recorded != dict(manifest)):
            return False
        return all(_size(self.directory / name) == file.size for name, file in recorded.items())

    def num_bytes_missing(self, manifest: Manifest) -> int:
        """What is still to be fetched, whole files and parts of files counted."""
        recorded = _read(self._partial) or {}
        kept = {name: file for name, file in manifest.items() if recorded.get(name) == file}
        return sum(file.size for file in manifest.values()) - sum(
            min(file.size, self._num_bytes_here(name)) for name, file in kept.items()
        )

    def prepare(self, manifest: Manifest) -> None:
        """Begin or go on: throw away what is not of `manifest`, keep the rest."""
        self.directory.mkdir(parents=True, exist_ok=True)
        recorded = _read(self._partial) or _read(self._complete) or {}
        self._complete.unlink(missing_ok=True)
        for name, file in recorded.items():
            if manifest.get(name) != file:
                for path in self.paths(name):
                    path.unlink(missing_ok=True)
        for name, file in manifest.items():
            path = self.directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if name not in recorded or _size(path) not in (None, file.size):
                for stale in self.paths(name):
                    stale.unlink(missing_ok=True)
        _write(self._partial, manifest)

    def paths(self, name: str) -> tuple[Path, Path, Path]:
        """Of one file: its final path, its unfinished one, and the list of the parts that are in that."""
        path = self.directory / name
        part = path.with_name(path.name + PART_SUFFIX)
        return path, part, part.with_name(part.name + "s")

    def finish(self, manifest: Manifest) -> None:
        """Record that every file is there. Raises ModelSourceError if one is not."""
        for name, file in manifest.items():
            size = _size(self.directory / name)
            if size != file.size:
                raise ModelSourceError(f"{name} has {size or 0} bytes after its download instead of {file.size}")
        self._partial.replace(self._complete)

    @contextlib.contextmanager
    def locked(self, on_wait: Callable[[], None]) -> Iterator[None]:
        """Alone with this place: a second server on this machine waits, and then finds the model complete."""
        self._lock.parent.mkdir(parents=True, exist_ok=True)
        has_waited = False
        with self._lock.open("w") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if not has_waited:
                        on_wait()
                    has_waited = True
                    time.sleep(_LOCK_POLL_S)
            yield

    def _num_bytes_here(self, name: str) -> int:
        path, part, _ = self.paths(name)
        if (size := _size(path)) is not None:
            return size
        # The unfinished file has its full length from the start; what is written of it has blocks.
        return part.stat().st_blocks * 512 if part.exists() else 0


def bases(download_dir: str | None) -> list[Path]:
    """Directories to look for models and to download to, best first. Raises ModelSourceError for a forbidden one."""
    if download_dir:
        chosen = Path(download_dir).expanduser().absolute()
        if chosen.resolve().is_relative_to(_MODEL_MOUNT):
            raise ModelSourceError(f"download_dir {download_dir}: nothing may be written below {_MODEL_MOUNT}")
        return [chosen]
    try:
        home = [Path.home() / ".cache" / "galley"]
    except RuntimeError:  # a user without a home
        home = []
    # SageMaker mounts the endpoint's volume on /tmp; the root of a container may be small.
    found = [*home, Path("/tmp/galley")]
    return [base for base in found if not base.resolve().is_relative_to(_MODEL_MOUNT)]


def find_complete(bases: Sequence[Path], key: str, manifest: Manifest | None = None) -> Place | None:
    """Where the model lies whole, if it does."""
    return next((place for place in (Place(base, key) for base in bases) if place.is_complete(manifest)), None)


def choose_place(bases: Sequence[Path], key: str, manifest: Manifest) -> Place:
    """Where to download to: where most of it is already, of the directories that have room for the rest.

    Raises ModelSourceError when none has.
    """
    refused: list[str] = []
    found: list[tuple[int, Place]] = []
    for base in bases:
        place = Place(base, key)
        try:
            base.mkdir(parents=True, exist_ok=True)
            probe = base / ".writable"
            probe.touch()
            probe.unlink()
            free = shutil.disk_usage(base).free
        except OSError as error:
            refused.append(f"{base}: {error.strerror}")
            continue
        missing = place.num_bytes_missing(manifest)
        if missing + _SPARE_BYTES > free:
            refused.append(f"{base}: {missing / 1e9:.1f} GB to download, {free / 1e9:.1f} GB free")
        else:
            found.append((missing, place))
    if not found:
        raise ModelSourceError(f"no room for the model: {'; '.join(refused)}; set download_dir to a larger disk")
    return min(found, key=lambda pair: pair[0])[1]


def _read(path: Path) -> dict[str, RemoteFile] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {name: RemoteFile(int(size), str(etag)) for name, (size, etag) in content.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        # Missing, or cut off when a machine went down: as good as none.
        return None


def _write(path: Path, manifest: Manifest) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps({name: [file.size, file.etag] for name, file in manifest.items()}), encoding="utf-8")
    fresh.replace(path)


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
