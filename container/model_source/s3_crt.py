"""Objects of a bucket by the AWS Common Runtime's S3 client: native threads, parts in parallel, near line rate.

It goes on with whole files after a restart, not with parts of one. Imported only where awscrt is installed. Knows
s3transfer's crt module. Must not know which objects make a model.
"""

from collections.abc import Sequence
from typing import Any

import boto3
from botocore.exceptions import EndpointConnectionError, NoCredentialsError
from s3transfer.crt import (
    BotocoreCRTCredentialsWrapper,
    BotocoreCRTRequestSerializer,
    CRTTransferManager,
    create_s3_crt_client,
)
from s3transfer.subscribers import BaseSubscriber

from container.model_source.progress import Progress
from container.model_source.s3_parts import PART_BYTES, Wanted


class _Counter(BaseSubscriber):  # type: ignore[misc]  # s3transfer has no types
    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def on_progress(self, future: Any, bytes_transferred: int, **kwargs: Any) -> None:
        """Called by s3transfer from the Common Runtime's threads."""
        self._progress.add(bytes_transferred)


def fetch(client: Any, bucket: str, wanted: Sequence[Wanted], progress: Progress) -> None:
    """Fetch what is missing. Raises botocore's errors and OSError; whole files stay for the next time."""
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
        with CRTTransferManager(crt_client, serializer) as manager:
            futures = []
            for one in wanted:
                for stale in (one.part, one.parts):
                    stale.unlink(missing_ok=True)
                # It writes to a temporary name beside this one first; ours makes leftovers of a killed start findable.
                future = manager.download(bucket, one.key, str(one.part), subscribers=[_Counter(progress)])
                futures.append((one, future))
            for one, future in futures:
                future.result()
                if one.part.stat().st_size != one.file.size:
                    raise OSError(f"{one.key} came with {one.part.stat().st_size} bytes instead of {one.file.size}")
                one.part.replace(one.path)
    except AwsCrtError as error:
        raise EndpointConnectionError(endpoint_url=f"{endpoint} ({error.name})") from error
