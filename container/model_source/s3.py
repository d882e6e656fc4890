"""A model from an S3 prefix: list it, choose its files, fetch them many parts at once, check them.

With awscrt installed the AWS Common Runtime's S3 client fetches; else threads with ranged reads do. Knows S3 and its
errors. Must not know what shows the progress, or where credentials come from: that is boto3's business.
"""

import errno
import importlib.util
import logging
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
    TokenRetrievalError,
)
from botocore.exceptions import (
    ConnectionError as AwsConnectionError,
)

from container.model_source import s3_parts
from container.model_source.progress import Progress
from container.model_source.s3_parts import Wanted
from container.model_source.source import ModelSourceError, S3Model, choose_files
from container.model_source.store import Place, RemoteFile, choose_place, find_complete

log = logging.getLogger(__name__)

ADVICE = "under network isolation, or without a role that may read it, let SageMaker bring the model: ModelDataSource"
_CONNECT_TIMEOUT_S = 5
_READ_TIMEOUT_S = 30
_NUM_ATTEMPTS = 3
_NO_CREDENTIALS = (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError, TokenRetrievalError)
_NO_ROUTE = (HTTPClientError, AwsConnectionError)


def download(model: S3Model, bases: list[Any], progress: Progress) -> Place:
    """The model's files on this machine. Raises ModelSourceError with one line that says why not."""
    client = _client()
    try:
        progress.say("looking for the model in S3")
        manifest = _list(client, model)
        key = _key(model)
        place = find_complete(bases, key, manifest)
        if place is not None:
            log.info("%s has not changed since its download to %s", model, place.directory)
            return place
        place = choose_place(bases, key, manifest)
        with place.locked(lambda: progress.say("waiting for another process that downloads the model")):
            if place.is_complete(manifest):
                return place
            _fetch(client, model, place, manifest, progress)
            # The Common Runtime cannot be told which version of an object it must be.
            if _list(client, model) != manifest:
                raise ModelSourceError(f"{model} was changed while it was downloaded; start again")
            place.finish(manifest)
        return place
    except (BotoCoreError, ClientError, OSError) as error:
        place_then = find_complete(bases, _key(model)) if isinstance(error, _NO_ROUTE) else None
        if place_then is None:
            raise ModelSourceError(_explain(error, model)) from error
        log.warning("cannot reach S3; serving %s as it was downloaded earlier", model)
        return place_then


def _fetch(client: Any, model: S3Model, place: Place, manifest: dict[str, RemoteFile], progress: Progress) -> None:
    missing = place.num_bytes_missing(manifest)
    place.prepare(manifest)
    total = sum(file.size for file in manifest.values())
    log.info("downloading %s to %s", model, place.directory)
    progress.start(total, total - missing)
    if importlib.util.find_spec("awscrt") is not None:
        from container.model_source import s3_crt

        try:
            s3_crt.fetch(client, model.bucket, _wanted(model, place, manifest), progress)
        except s3_crt.CommonRuntimeFailed as error:
            log.warning("the AWS Common Runtime failed (%s); going on with threads", error)
            progress.start(total, total - place.num_bytes_missing(manifest))
    s3_parts.fetch(client, model.bucket, _wanted(model, place, manifest), progress)
    progress.finish()


def _wanted(model: S3Model, place: Place, manifest: dict[str, RemoteFile]) -> list[Wanted]:
    """The files that are not there yet."""
    prefix = f"{model.prefix}/" if model.prefix else ""
    paths = {name: place.paths(name) for name in manifest}
    return [Wanted(prefix + name, manifest[name], *paths[name]) for name in manifest if not paths[name][0].exists()]


def _client() -> Any:
    return boto3.Session().client(
        "s3",
        config=Config(
            connect_timeout=_CONNECT_TIMEOUT_S,
            read_timeout=_READ_TIMEOUT_S,
            retries={"max_attempts": _NUM_ATTEMPTS, "mode": "standard"},
            max_pool_connections=s3_parts.NUM_THREADS,
        ),
    )


def _key(model: S3Model) -> str:
    # A prefix may hold what no file name may; the bucket's name cannot hold "--" and a letter in capitals.
    return "s3/" + "/".join([model.bucket, *(part.replace(".", "%2E") for part in model.prefix.split("/") if part)])


def _list(client: Any, model: S3Model) -> dict[str, RemoteFile]:
    """What is to be fetched, by name relative to the prefix."""
    prefix = f"{model.prefix}/" if model.prefix else ""
    found: dict[str, RemoteFile] = {}
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=model.bucket, Prefix=prefix)
    for page in pages:
        for entry in page.get("Contents", ()):
            name = entry["Key"][len(prefix) :]
            # Consoles make "folders": empty objects whose names end with a slash.
            if name and not name.endswith("/"):
                found[name] = RemoteFile(entry["Size"], entry["ETag"])
    if not found:
        raise ModelSourceError(f"{model}: there are no objects below this prefix")
    chosen = choose_files(found, str(model), with_code=True)
    for name in chosen:
        if name.startswith("/") or ".." in name.split("/") or "" in name.split("/"):
            raise ModelSourceError(f"{model}: {name!r} is no name of a file")
    return {name: found[name] for name in chosen}


def _explain(error: Exception, model: S3Model) -> str:
    if isinstance(error, _NO_CREDENTIALS):
        return f"{model}: the container has no AWS credentials; {ADVICE}"
    if isinstance(error, _NO_ROUTE):
        return f"{model}: the container has no network route to S3 ({type(error).__name__}); {ADVICE}"
    if isinstance(error, ClientError):
        return f"{model}: {_explain_code(error)}"
    if isinstance(error, OSError):
        what = "the disk is full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else str(error.strerror or error)
        return f"{model}: {what} while downloading; set download_dir to a larger disk"
    return f"{model}: {' '.join(str(error).split())}"


def _explain_code(error: ClientError) -> str:
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    if code == "NoSuchBucket":
        return "there is no such bucket"
    if code in ("NoSuchKey", "404", "PreconditionFailed", "412"):
        return "an object was changed or removed while it was downloaded; start again"
    if code in ("ExpiredToken", "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken"):
        return f"S3 does not take the container's credentials ({code}); {ADVICE}"
    if status == 403 or code in ("AccessDenied", "AllAccessDisabled"):
        return f"access denied; the container's role needs s3:ListBucket and s3:GetObject; {ADVICE}"
    return f"S3 answered {code or status}: {' '.join(str(error).split())[:200]}"
