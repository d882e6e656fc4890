"""`python -m container.model_source --settings FILE`: downloads one model, then ends.

A process of its own, so that the supervisor goes on watching gunicorn and signals, can end a download at once whatever
its libraries wait for, and itself loads neither of them. Exit codes: 0 when the result is written, 2 when the model
cannot be had and another start would not help; what went wrong stands in the log, in one line.
"""

import argparse
import logging
import signal
import sys
from pathlib import Path

import msgspec

from container.model_source.progress import Progress
from container.model_source.source import HubModel, ModelSourceError, check_servable, find_model_dir, parse_remote
from container.model_source.status import StatusPublisher
from container.model_source.store import Place, bases
from container.processes import configure_logging, die_with_parent
from container.supervised_download import Downloaded, DownloadSettings

log = logging.getLogger("container.model_source")

_EXIT_CANNOT = 2
# They write a line per request.
_TALKATIVE = ("httpx", "httpx2", "httpcore", "httpcore2", "botocore", "boto3", "urllib3", "filelock")


def main() -> int:
    """Download; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m container.model_source", description="Download one model.")
    parser.add_argument("--settings", required=True, type=Path, help="JSON file that the supervisor has written")
    path = parser.parse_args().settings
    settings = msgspec.json.decode(path.read_bytes(), type=DownloadSettings)
    # It may hold a token.
    path.unlink()
    if settings.parent_pid is not None:
        die_with_parent(settings.parent_pid, signal.SIGKILL)
    configure_logging(settings.log_level)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    progress = Progress(StatusPublisher(Path(settings.socket_path)).publish)
    try:
        place, served_name = _download(settings, progress)
        model_dir = find_model_dir(place.directory)
        check_servable(model_dir)
    except ModelSourceError as error:
        log.error("%s", error)
        return _EXIT_CANNOT
    result = Downloaded(str(place.directory), str(model_dir), served_name)
    fresh = Path(settings.result_path).with_suffix(".new")
    fresh.write_bytes(msgspec.json.encode(result))
    fresh.replace(settings.result_path)
    return 0


def _download(settings: DownloadSettings, progress: Progress) -> tuple[Place, str]:
    model = parse_remote(settings.model, settings.revision, settings.hf_token)
    if model is None:
        raise ModelSourceError(f"{settings.model} is a directory: there is nothing to download")
    directories = bases(settings.download_dir)
    # One of the two is loaded, and neither is needed for the other.
    if isinstance(model, HubModel):
        from container.model_source import hub

        return hub.download(model, directories, progress), model.name
    from container.model_source import s3

    return s3.download(model, directories, progress), model.name


if __name__ == "__main__":
    sys.exit(main())
