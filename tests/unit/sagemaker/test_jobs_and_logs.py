"""Batch jobs and logs, against moto's AWS and recorded answers."""

import dataclasses
import time
from typing import Any

import boto3
import pytest

from sagemaker.__main__ import main
from sagemaker.calls import ToolError
from sagemaker.logs import filter_call, logs
from sagemaker.transform import Transform, create_transform_job, job_name, transform
from tests.unit.sagemaker.api_model import complaints
from tests.unit.sagemaker.aws_fakes import ARN, BASE, DEPLOY, GPU, JOB, NOW, REGION, Recorded, Said

# Batch jobs.


@pytest.mark.parametrize("settings", [{}, {"instance_type": "ml.c5.xlarge"}, {"join_input": True, "instances": 2}])
def test_the_request_of_a_batch_job(settings: dict[str, Any]) -> None:
    name = job_name("m" * 63)
    job = Transform(name=name, model_name="mine", input="s3://bucket/in", output="s3://bucket/out", **settings)
    call = create_transform_job(job)
    assert complaints(call) == []
    assert call.parameters["BatchStrategy"] == "MultiRecord"
    assert call.parameters["TransformInput"]["SplitType"] == "Line"
    assert call.parameters["TransformOutput"]["AssembleWith"] == "Line"
    gpu = "TransformAmiVersion" in call.parameters["TransformResources"]
    assert gpu == ("c5" not in settings.get("instance_type", ""))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_concurrent": 20}, "over SageMaker's 100 MB"),
        ({"max_payload_mb": 0}, "at least 1"),
        ({"input": "bucket/in"}, "s3://BUCKET/PREFIX"),
        ({"name": "-"}, "job name"),
    ],
)
def test_a_batch_job_that_sagemaker_would_refuse(settings: dict[str, Any], words: str) -> None:
    fields = {"name": "job", "model_name": "mine", "input": "s3://bucket/in", "output": "s3://bucket/out"}
    with pytest.raises(ToolError, match=words):
        create_transform_job(Transform(**{**fields, **settings}))


def test_a_batch_job(aws: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*DEPLOY[:-2], "--model", "a/b-1B", "--model-only"]) == 0
    assert main([*JOB, "--wait"]) == 0
    output = capsys.readouterr().out.splitlines()
    assert output[-3:] == [
        "started transform job job",
        "transform job job: Completed",
        "next: aws s3 ls --recursive s3://bucket/out",
    ]
    assert aws.describe_transform_job(TransformJobName="job")["TransformInput"]["SplitType"] == "Line"
    assert main(["status", *BASE, "job", "--transform"]) == 0
    assert "transform job job: Completed" in capsys.readouterr().out
    assert main([*JOB[:3], "other", *JOB[4:]]) == 1
    assert "Could not find model" in capsys.readouterr().err


def test_a_batch_job_of_a_model_that_it_cannot_read(aws: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*DEPLOY, "--model", "s3://bucket/m/", "--model-only"]) == 0
    status_of_job = main(JOB)
    if "ModelDataSource" not in aws.describe_model(ModelName="mine")["PrimaryContainer"]:
        pytest.skip("this moto forgets where a model lies")
    assert status_of_job == 1
    assert "which batch transform cannot read" in capsys.readouterr().err


def test_a_batch_job_that_fails(recorded: Recorded, said: Said) -> None:
    tool, stubber = recorded("sagemaker")
    job = Transform(name="job", model_name="mine", input="s3://bucket/in", output="s3://bucket/out")
    model = {"ModelName": "mine", "ModelArn": "arn:aws:sagemaker:us-east-1:123456789012:model/mine"}
    stubber.add_response("describe_model", {**model, "CreationTime": NOW})
    stubber.add_response("create_transform_job", {"TransformJobArn": ARN})
    for state in ("InProgress", "Failed", "Failed"):
        stubber.add_response("describe_transform_job", _job(state))
    with pytest.raises(ToolError, match="job job is Failed: see `python -m sagemaker logs job --transform`"):
        transform(tool, job, wait=True)
    assert said.slept_s == [15.0]
    assert "  reason: bad line" in said.lines


def _job(state: str) -> dict[str, Any]:
    source = {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://bucket/in"}}
    return {
        "TransformJobName": "job",
        "TransformJobArn": ARN,
        "TransformJobStatus": state,
        "FailureReason": "bad line",
        "ModelName": "mine",
        "TransformInput": {"DataSource": source},
        "TransformResources": {"InstanceType": GPU, "InstanceCount": 1},
        "CreationTime": NOW,
    }


# Logs.

GROUP = "/aws/sagemaker/Endpoints/mine"


def write_log(group: str, stream: str, *messages: str) -> None:
    client = boto3.client("logs", region_name=REGION)
    if not client.describe_log_groups(logGroupNamePrefix=group)["logGroups"]:
        client.create_log_group(logGroupName=group)
    if not client.describe_log_streams(logGroupName=group, logStreamNamePrefix=stream)["logStreams"]:
        client.create_log_stream(logGroupName=group, logStreamName=stream)
    events = [{"timestamp": int(time.time() * 1000), "message": message} for message in messages]
    client.put_log_events(logGroupName=group, logStreamName=stream, logEvents=events)


def test_logs(aws: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["logs", *BASE, "mine"]) == 1
    assert "mine has written no log yet: see `python -m sagemaker status mine`" in capsys.readouterr().err
    write_log(GROUP, "AllTraffic/i-1", "ready\n", "second")
    assert main(["logs", *BASE, "mine", "--since", "10m"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("Z ", 1)[1] for line in lines] == ["AllTraffic/i-1 ready", "AllTraffic/i-1 second"]
    write_log("/aws/sagemaker/TransformJobs", "job/i-1", "batch")
    assert main(["logs", *BASE, "job", "--transform"]) == 0
    assert [line.split("Z ", 1)[1] for line in capsys.readouterr().out.splitlines()] == ["job/i-1 batch"]


def test_the_log_of_a_job_is_not_that_of_another_whose_name_goes_on() -> None:
    call = filter_call("job", is_transform=True, start_ms=0)
    assert complaints(call) == []
    # moto does not look at this.
    assert call.parameters["logStreamNamePrefix"] == "job/"


def test_logs_that_are_followed(aws: Any, said: Said) -> None:
    def sleep(duration_s: float) -> None:
        said.slept_s.append(duration_s)
        if len(said.slept_s) == 3:
            raise KeyboardInterrupt
        write_log(GROUP, "AllTraffic/i-1", f"line {len(said.slept_s)}")

    tool = dataclasses.replace(said.tool(), sleep=sleep)
    with pytest.raises(KeyboardInterrupt):
        logs(tool, "mine", is_transform=False, since_s=60, follow=True)
    assert [line.rsplit(" ", 2)[1:] for line in said.lines] == [["line", "1"], ["line", "2"]], "each is shown once"


def test_an_old_log_says_how_to_see_more(aws: Any, said: Said) -> None:
    write_log(GROUP, "AllTraffic/i-1", "x")
    logs(said.tool(), "mine", is_transform=False, since_s=-60, follow=False)
    assert said.lines == ["nothing within -60 s; next: python -m sagemaker logs mine --since 1d"]
