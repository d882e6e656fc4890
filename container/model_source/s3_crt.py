"""Objects of a bucket by the AWS Common Runtime's S3 client: native threads, parts in parallel, near line rate.

It goes on with whole files after a restart, not with parts of one. Imported only where awscrt is installed. Knows
s3transfer's crt module. Must not know which objects make a model.
"""

import glob
from collections.abc import Sequence
from typing import Any

import boto3
from botocore.exceptions import NoCredentialsError
from s3transfer.crt import (
    BotocoreCRTCredentialsWrapper,
    BotocoreCRTRequestSerializer,
    CRTTransferManager,
    create_s3_crt_client,
)
from s3transfer.subscribers import BaseSubscriber

from container.model_source.progress import Progress
from container.model_source.s3_parts import PART_BYTES, Wanted


class CommonRuntimeFailed(Exception):
    """It could not do what S3's other clients may: it knows no proxies, for one."""


class _Watcher(BaseSubscriber):  # type: ignore[misc]  # s3transfer has no types
    def __init__(self, wanted: Wanted, progress: Progress) -> None:
        self._wanted = wanted
        self._progress = progress

    def on_progress(self, future: Any, bytes_transferred: int, **kwargs: Any) -> None:
        """Called by s3transfer from the Common Runtime's threads."""
        self._progress.add(bytes_transferred)

    def on_done(self, future: Any, **kwargs: Any) -> None:
        """Called when s3transfer has given the file the name it was told, or has thrown it away."""
        part = self._wanted.part
        if part.exists() and part.stat().st_size == self._wanted.file.size:
            part.replace(self._wanted.path)


def fetch(client: Any, bucket: str, wanted: Sequence[Wanted], progress: Progress) -> None:
    """Fetch what is missing. Raises botocore's errors and OSError; whole files stay for the next time.

    Raises CommonRuntimeFailed for what is the Common Runtime's own.
    """
    from awscrt.exceptions import AwsCrtError

    session = boto3.Session()
    credentials = session.get_credentials()
    if credentials is None:
        raise NoCredentialsError
    head = client.head_bucket(Bucket=bucket)["ResponseMetadata"]["HTTPHeaders"]
    # The Common Runtime follows no redirect to a bucket's own region.
    region = head.get("x-amz-bucket-region") or client.meta.region_name or "us-east-1"
    endpoint = client.meta.endpoint_url
    is_aws = ".amazonaws.com" in endpoint
    serializer = BotocoreCRTRequestSerializer(
        session._session, {"region_name": region, "endpoint_url": None if is_aws else endpoint}
    )
    crt_client = create_s3_crt_client(
        region,
        BotocoreCRTCredentialsWrapper(credentials).to_crt_credentials_provider(),
        part_size=PART_BYTES,
        use_ssl=endpoint.startswith("https:"),
    )
    try:
        # Leaving it waits for what `on_done` does.
        with CRTTransferManager(crt_client, serializer) as manager:
            futures = []
            for one in wanted:
                # s3transfer's own name for what is not whole begins with the one it is told.
                for stale in one.part.parent.glob(glob.escape(one.part.name) + "*"):
                    stale.unlink()
                watcher = _Watcher(one, progress)
                futures.append(manager.download(bucket, one.key, str(one.part), subscribers=[watcher]))
            for future in futures:
                future.result()
    except AwsCrtError as error:
        raise CommonRuntimeFailed(error.name) from error
