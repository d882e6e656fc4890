"""What the tests of the AWS commands share: names, and a tool that writes down what it says."""

import dataclasses
import datetime
from collections.abc import Callable

import botocore.stub

from sagemaker.aws import Access, Aws
from sagemaker.deploy import Tool

IMAGE = "123456789012.dkr.ecr.us-east-1.amazonaws.com/galley:1"
ROLE = "arn:aws:iam::123456789012:role/galley"
REGION = "us-east-1"
# moto's list of instance types ends with this generation.
GPU = "ml.g4dn.xlarge"
BASE = ["--region", REGION]
DEPLOY = ["deploy", *BASE, "--image", IMAGE, "--role", ROLE, "--name", "mine", "--instance-type", GPU]
ARN = "arn:aws:sagemaker:us-east-1:123456789012:endpoint/mine"
COMPONENT_ARN = "arn:aws:sagemaker:us-east-1:123456789012:inference-component/mine"
NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
TAGS = {"Tags": [{"Key": "made-by", "Value": "python -m sagemaker"}]}
JOB = ["transform", *BASE, "mine", "--input", "s3://bucket/in", "--output", "s3://bucket/out", "--job-name", "job"]

Recorded = Callable[[str], tuple[Tool, botocore.stub.Stubber]]


@dataclasses.dataclass
class Said:
    lines: list[str] = dataclasses.field(default_factory=list)
    slept_s: list[float] = dataclasses.field(default_factory=list)

    def tool(self) -> Tool:
        access = Access(region=REGION)
        return Tool(aws=Aws(access), say=self.lines.append, sleep=self.slept_s.append)
