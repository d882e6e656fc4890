"""One call of an AWS API as plain data, so that requests can be built, printed and checked without AWS.

Knows the shape of a call, and the form of AWS names. Must not know boto3, nor which calls there are.
"""

import dataclasses
import json
import re
import sys
from collections.abc import Iterable
from typing import Any

MAX_NAME_LENGTH = 63
_NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}")
_S3 = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/\S*)?")


class ToolError(Exception):
    """A command cannot do what was asked; the message is one line that ends in the next thing to do."""


@dataclasses.dataclass(frozen=True)
class Call:
    """service: boto3's name of it ("sagemaker"). operation: as the API and IAM spell it ("CreateModel")."""

    service: str
    operation: str
    parameters: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """The call as `--dry-run` prints it."""
        return dataclasses.asdict(self)


def print_calls(calls: Iterable[Call]) -> None:
    """The calls as one JSON list on stdout, which is what `--dry-run` prints."""
    print(json.dumps([call.as_json() for call in calls], indent=2, default=_text, ensure_ascii=False))
    sys.stdout.flush()


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def checked_name(name: str, what: str) -> str:
    """The name, if SageMaker takes it: 1 to 63 letters, digits and inner hyphens. Raises ToolError otherwise."""
    if not _NAME.fullmatch(name):
        raise ToolError(
            f"{what} {name!r} is not 1 to {MAX_NAME_LENGTH} letters, digits and inner hyphens: give another name"
        )
    return name


def derived_name(text: str) -> str:
    """A name that SageMaker takes, from any text: "Qwen/Qwen3-0.6B" gives "qwen3-0-6b". Empty where nothing is left."""
    last = text.rstrip("/").rsplit("/", 1)[-1]
    name = re.sub(r"[^a-z0-9]+", "-", last.removesuffix(".tar.gz").lower())
    return name.strip("-")[:MAX_NAME_LENGTH].strip("-")


def checked_s3_uri(uri: str, what: str) -> str:
    """The URI, if it has the form s3://BUCKET/KEY. Raises ToolError otherwise."""
    if not _S3.fullmatch(uri):
        raise ToolError(
            f"{what} {uri!r} is not of the form s3://BUCKET/PREFIX, the bucket's name 3 to 63 small letters, digits, "
            "dots and hyphens: give the address of objects in S3"
        )
    return uri


def tags(extra: dict[str, str]) -> list[dict[str, str]]:
    """The tags of what these tools make: the mark that `delete` looks for, then the user's own."""
    return [{"Key": key, "Value": value} for key, value in {**extra, TAG_KEY: TAG_VALUE}.items()]


TAG_KEY = "made-by"
TAG_VALUE = "python -m sagemaker"
