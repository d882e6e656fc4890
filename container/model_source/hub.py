"""A model from the Hugging Face hub: the revision's files, by huggingface_hub, into our own directory.

The library finds the files' servers, follows redirects, uses Xet where the hub does, and puts a file under its name
when it is whole; a start after an interrupted one goes on with whole files. HF_ENDPOINT and the like are its settings.

Knows huggingface_hub and its errors. Must not know what shows the progress.
"""

import errno
import glob
import json
import logging
import os
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError: its HTTP client's
    DisabledRepoError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from tqdm import tqdm

from container.model_source.progress import Progress
from container.model_source.source import HubModel, ModelSourceError, choose_files
from container.model_source.store import Place, RemoteFile, choose_place, find_complete

log = logging.getLogger(__name__)

ADVICE = "under network isolation let SageMaker bring the model (ModelDataSource), or name a directory"
_LOOK_UP_TIMEOUT_S = 10.0
_NUM_ATTEMPTS = 4
_NUM_FILES_AT_ONCE = 8
_MANIFEST_OF_REVISION = "{}.revision.json"
# What the library raises besides, when it cannot reach the hub or a file did not come whole.
_INTERRUPTED = (HTTPError, LocalEntryNotFoundError, FileMetadataError, ConnectionError, TimeoutError)


def download(model: HubModel, bases: list[Path], progress: Progress) -> Place:
    """The model's files on this machine. Raises ModelSourceError with one line that says why not."""
    progress.say("looking for the model on the hub")
    try:
        commit, manifest = _look_up(model)
    except (HTTPError, OSError, HFValidationError) as error:
        earlier = None if isinstance(error, HfHubHTTPError) else _downloaded_earlier(model, bases)
        if earlier is None:
            raise ModelSourceError(_explain(error, model)) from error
        log.warning("cannot reach the hub; serving %s as it was downloaded earlier", model)
        return earlier
    key = f"{_folder(model)}/{commit}"
    place = find_complete(bases, key, manifest)
    if place is not None:
        log.info("%s has not changed since its download to %s", model, place.directory)
    else:
        place = choose_place(bases, key, manifest)
        with place.locked(lambda: progress.say("waiting for another process that downloads the model")):
            if not place.is_complete(manifest):
                _fetch(model, commit, place, manifest, progress)
    _remember(model, place, commit)
    return place


def _look_up(model: HubModel) -> tuple[str, dict[str, RemoteFile]]:
    """The commit that the revision is now, and its files that are to be served."""
    api = HfApi(token=model.token)
    info = api.model_info(model.repo_id, revision=model.revision, files_metadata=True, timeout=_LOOK_UP_TIMEOUT_S)
    files = {one.rfilename: RemoteFile(one.size or 0, one.blob_id or "") for one in info.siblings or ()}
    chosen = choose_files(files, str(model), with_code=False)
    assert info.sha is not None
    return info.sha, {name: files[name] for name in chosen}


def _fetch(model: HubModel, commit: str, place: Place, manifest: dict[str, RemoteFile], progress: Progress) -> None:
    missing = place.num_bytes_missing(manifest)
    place.prepare(manifest)
    # A download that was killed leaves its unfinished files under names that nobody would find again.
    for leftover in place.directory.glob(".cache/huggingface/download/*.incomplete"):
        leftover.unlink()
    total = sum(file.size for file in manifest.values())
    log.info("downloading %s, commit %s, to %s", model, commit, place.directory)
    for attempt in range(_NUM_ATTEMPTS):
        progress.start(total, total - missing)
        try:
            snapshot_download(
                model.repo_id,
                revision=commit,
                token=model.token,
                local_dir=place.directory,
                # Patterns to the library, names to us.
                allow_patterns=[glob.escape(name) for name in manifest],
                max_workers=_NUM_FILES_AT_ONCE,
                tqdm_class=_counting_bar(progress),  # type: ignore[arg-type]  # an ordinary tqdm does
            )
            break
        except (HTTPError, OSError) as error:
            is_over = not isinstance(error, _INTERRUPTED) or _is_refusal(error) or attempt == _NUM_ATTEMPTS - 1
            if is_over:
                raise ModelSourceError(_explain(error, model)) from error
            log.warning("the download was interrupted (%s); going on", type(error).__name__)
            missing = place.num_bytes_missing(manifest)
    progress.finish()
    place.finish(manifest)


def _counting_bar(progress: Progress) -> type["tqdm[Any]"]:
    """A progress bar that shows nothing and tells `progress` what it counts.

    The library has one bar for what came over the network and one for what was written, either of which may stand
    still, depending on how it fetches; the one that is ahead is told.
    """
    ahead = [0.0]

    class CountingBar(tqdm):  # type: ignore[type-arg]  # generic to its stubs only
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            kwargs["file"] = _Nowhere()
            super().__init__(*args, **kwargs)

        def update(self, n: float | None = 1) -> bool | None:
            """Called by the library, from any of its threads."""
            shown = super().update(n)
            if self.unit == "B" and self.n > ahead[0]:
                progress.add(int(self.n) - int(ahead[0]))
                ahead[0] = self.n
            return shown

    return CountingBar


class _Nowhere:
    """A text file that keeps nothing."""

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        """Nothing is kept."""


def _folder(model: HubModel) -> str:
    return "hub/" + model.repo_id.replace("/", "--")


def _remember(model: HubModel, place: Place, commit: str) -> None:
    """Which commit the revision was, for a start without a network."""
    path = place.base / _folder(model) / _revision_file(model)
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps({"commit": commit}), encoding="utf-8")
    fresh.replace(path)


def _downloaded_earlier(model: HubModel, bases: list[Path]) -> Place | None:
    for base in bases:
        try:
            content = json.loads((base / _folder(model) / _revision_file(model)).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        place = Place(base, f"{_folder(model)}/{content['commit']}")
        if place.is_complete():
            return place
    return None


def _revision_file(model: HubModel) -> str:
    return _MANIFEST_OF_REVISION.format((model.revision or "main").replace("/", "--"))


def _is_refusal(error: Exception) -> bool:
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", 0)
    return 400 <= status < 500 and status not in (408, 429)


def _explain(error: Exception, model: HubModel) -> str:
    has_token = "the token given has no access to it" if model.token else "if it is private, set hf_token (HF_TOKEN)"
    if isinstance(error, OfflineModeIsEnabled):
        return f"{model}: HF_HUB_OFFLINE is set, and it was not downloaded earlier; unset it, or name a directory"
    if isinstance(error, GatedRepoError):
        return f"{model}: the repository is gated; accept its terms on the hub and set hf_token (HF_TOKEN)"
    if isinstance(error, RevisionNotFoundError):
        return f"{model}: the repository has no such revision"
    if isinstance(error, RepositoryNotFoundError):
        return f"{model}: no such directory here and no such repository on the hub; {has_token}"
    if isinstance(error, DisabledRepoError):
        return f"{model}: the hub has disabled the repository"
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        status = error.response.status_code
        refused = f"the hub refuses the download ({status}); {has_token}"
        return f"{model}: {refused if status in (401, 403) else f'the hub answered {status}'}"
    if isinstance(error, HFValidationError):
        return f"{model}: {' '.join(str(error).split())}"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{model}: the disk is full; set download_dir to a larger one"
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, _INTERRUPTED):
        return f"{model}: {os.strerror(error.errno)} while downloading"
    return f"{model}: the container has no network route to the hub ({type(error).__name__}); {ADVICE}"
