"""deploy, status, delete, transform and logs, against moto's AWS; what moto lacks, against recorded answers."""

import dataclasses
import datetime
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import boto3
import botocore.stub
import moto
import pytest

from sagemaker.__main__ import main
from sagemaker.aws import Access, Aws
from sagemaker.calls import Call, ToolError
from sagemaker.deploy import Tool, delete, deploy, status
from sagemaker.logs import filter_call, logs
from sagemaker.plan import Async, Component, Deployment, Scaling, Serverless, checked
from sagemaker.transform import Transform, create_transform_job, job_name, transform
from tests.unit.sagemaker.api_model import complaints
from tests.unit.sagemaker.test_plan import IMAGE, ROLE

REGION = "us-east-1"
# moto's list of instance types ends with this generation.
GPU = "ml.g4dn.xlarge"
BASE = ["--region", REGION]
DEPLOY = ["deploy", *BASE, "--image", IMAGE, "--role", ROLE, "--name", "mine", "--instance-type", GPU]


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.delenv("AWS_PROFILE", raising=False)


@pytest.fixture
def aws(credentials: None) -> Iterator[Any]:
    with moto.mock_aws():
        yield boto3.client("sagemaker", region_name=REGION)


@dataclasses.dataclass
class Said:
    lines: list[str] = dataclasses.field(default_factory=list)
    slept_s: list[float] = dataclasses.field(default_factory=list)

    def tool(self) -> Tool:
        access = Access(region=REGION)
        return Tool(aws=Aws(access), say=self.lines.append, sleep=self.slept_s.append)


@pytest.fixture
def said() -> Said:
    return Said()


def names(client: Any) -> set[str]:
    return (
        {f"endpoint {each['EndpointName']}" for each in client.list_endpoints()["Endpoints"]}
        | {f"config {each['EndpointConfigName']}" for each in client.list_endpoint_configs()["EndpointConfigs"]}
        | {f"model {each['ModelName']}" for each in client.list_models()["Models"]}
    )


def targets() -> list[Any]:
    client = boto3.client("application-autoscaling", region_name=REGION)
    found: list[Any] = client.describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"]
    return found


def test_an_endpoint_from_its_making_to_its_end(aws: Any, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*DEPLOY, "--model", "s3://bucket/models/m/", "--max-instances", "3", "--env", "A=b=c", "--tag", "t=1"]
    assert main(arguments) == 0
    output = capsys.readouterr().out.splitlines()
    assert output == [
        "made model mine",
        "made endpoint configuration mine",
        "made endpoint mine",
        "endpoint mine: InService",
        "registered for auto scaling: mine",
        "set the scaling policy of mine",
        "next: python -m sagemaker invoke mine 'Hello' --stream",
    ]
    assert names(aws) == {"endpoint mine", "config mine", "model mine"}
    model = aws.describe_model(ModelName="mine")
    assert model["PrimaryContainer"]["Environment"] == {"A": "b=c"}
    assert model["ExecutionRoleArn"] == ROLE
    assert {"Key": "t", "Value": "1"} in aws.list_tags(ResourceArn=model["ModelArn"])["Tags"]
    (variant,) = aws.describe_endpoint_config(EndpointConfigName="mine")["ProductionVariants"]
    assert (variant["InstanceType"], variant["ModelName"]) == (GPU, "mine")
    (target,) = targets()
    assert (target["MinCapacity"], target["MaxCapacity"]) == (1, 3)

    assert main(["status", *BASE, "mine"]) == 0
    output = capsys.readouterr().out.splitlines()
    assert output == [
        "endpoint mine: InService",
        f"  variant AllTraffic: 1 of 1 × {GPU}",
        "next: python -m sagemaker invoke mine 'Hello'",
    ]
    assert main(["status", *BASE]) == 0
    assert "endpoint mine: InService" in capsys.readouterr().out

    assert main(arguments) == 1
    assert "endpoint mine exists: `python -m sagemaker delete mine` first" in capsys.readouterr().err

    assert main(["delete", *BASE, "mine"]) == 0
    output = capsys.readouterr().out.splitlines()
    assert output == [
        "ended auto scaling of endpoint/mine/variant/AllTraffic",
        "deleted endpoint mine",
        "deleted endpoint configuration mine",
        "deleted model mine",
        "next: python -m sagemaker status lists what is left in this region",
    ]
    assert names(aws) == set()
    assert targets() == []
    assert main(["delete", *BASE, "mine"]) == 0, "what is gone is no error"
    assert "there is no endpoint mine" in capsys.readouterr().out
    assert main(["status", *BASE]) == 0
    assert "no endpoint in us-east-1" in capsys.readouterr().out


@pytest.mark.parametrize(
    "settings",
    [
        {"serverless": Serverless(memory_mb=2048), "model": "s3://bucket/m.tar.gz"},
        {
            "asynchronous": Async(output="s3://bucket/out"),
            "scaling": Scaling(min_capacity=0, max_capacity=1),
            "instance_type": "ml.c5.xlarge",
        },
        {"model": "a/b-1B", "instance_type": GPU, "subnets": ("s",), "security_groups": ("g",), "volume_gb": 50},
    ],
)
def test_other_kinds_are_made_and_deleted(aws: Any, said: Said, settings: dict[str, Any]) -> None:
    plan = checked(Deployment(name="mine", image=IMAGE, role_arn=ROLE, **settings))
    deploy(said.tool(), plan, wait=True, model_only=False)
    assert names(aws) == {"endpoint mine", "config mine", "model mine"}
    assert len(targets()) == bool(plan.scaling)
    status(said.tool(), "mine")
    if plan.serverless:
        assert "  variant AllTraffic: serverless, 2048 MB, up to 4 at once" in said.lines
    delete(said.tool(), "mine")
    assert names(aws) == set()


def test_what_others_made_is_kept(aws: Any, capsys: pytest.CaptureFixture[str]) -> None:
    aws.create_model(ModelName="mine", PrimaryContainer={"Image": IMAGE}, ExecutionRoleArn=ROLE)
    variant = {"VariantName": "v", "ModelName": "mine", "InstanceType": GPU, "InitialInstanceCount": 1}
    aws.create_endpoint_config(EndpointConfigName="mine", ProductionVariants=[variant])
    aws.create_endpoint(EndpointName="mine", EndpointConfigName="mine")
    assert main(["delete", *BASE, "mine"]) == 1
    output = capsys.readouterr()
    assert "kept endpoint mine: it has no tag made-by" in output.out
    assert "was kept" in output.err
    assert names(aws) == {"endpoint mine", "config mine", "model mine"}


def test_a_failed_deploy_leaves_nothing_that_blocks_the_next(aws: Any, capsys: pytest.CaptureFixture[str]) -> None:
    # moto does not know this type, as AWS does not know one in every region.
    assert main([*DEPLOY[:-1], "ml.g6.2xlarge"]) == 1
    assert capsys.readouterr().err.startswith("python -m sagemaker deploy: CreateEndpointConfig: ")
    assert names(aws) == set()


def test_a_role_by_its_name(aws: Any, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["deploy", *BASE, "--image", IMAGE, "--role", "mine", "--model", "a/b-1B", "--model-only"]
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert "there is no role mine: make it with what `python -m sagemaker policy trust`" in error
    iam = boto3.client("iam")
    iam.create_role(RoleName="mine", AssumeRolePolicyDocument="{}")
    assert main(arguments) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("next: python -m sagemaker transform b-1b --input")
    assert aws.describe_model(ModelName="b-1b")["ExecutionRoleArn"] == "arn:aws:iam::123456789012:role/mine"
    assert names(aws) == {"model b-1b"}


def test_no_wait_returns_at_once(aws: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*DEPLOY, "--no-wait", "--max-instances", "2"]) == 1
    assert "leave --no-wait" in capsys.readouterr().err
    assert names(aws) == set()
    assert main([*DEPLOY, "--no-wait"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "next: python -m sagemaker status mine"


# What moto lacks: inference components, and endpoints that take time or fail.

ARN = "arn:aws:sagemaker:us-east-1:123456789012:endpoint/mine"
COMPONENT_ARN = "arn:aws:sagemaker:us-east-1:123456789012:inference-component/mine"
NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
TAGS = {"Tags": [{"Key": "made-by", "Value": "python -m sagemaker"}]}


def endpoint(state: str, **rest: Any) -> dict[str, Any]:
    moments = {"CreationTime": NOW, "LastModifiedTime": NOW}
    fields = {"EndpointName": "mine", "EndpointArn": ARN, "EndpointConfigName": "mine", "EndpointStatus": state}
    return {**fields, **moments, **rest}


def component(state: str, **rest: Any) -> dict[str, Any]:
    moments = {"CreationTime": NOW, "LastModifiedTime": NOW}
    fields = {"InferenceComponentName": "mine", "InferenceComponentArn": COMPONENT_ARN, "EndpointName": "mine"}
    return {**fields, "EndpointArn": ARN, "InferenceComponentStatus": state, **moments, **rest}


@pytest.fixture
def recorded(credentials: None, said: Said) -> Callable[[str], tuple[Tool, botocore.stub.Stubber]]:
    tool = said.tool()

    def stub(service: str) -> tuple[Tool, botocore.stub.Stubber]:
        stubber = botocore.stub.Stubber(tool.aws.client(service))
        stubber.activate()
        return tool, stubber

    return stub


Recorded = Callable[[str], tuple[Tool, botocore.stub.Stubber]]


def missing(stubber: botocore.stub.Stubber, operation: str) -> None:
    stubber.add_client_error(operation, "ValidationException", 'Could not find endpoint "arn".')


def test_a_component_is_made_once_its_endpoint_is_in_service(recorded: Recorded, said: Said) -> None:
    tool, stubber = recorded("sagemaker")
    _, scaling = recorded("application-autoscaling")
    missing(stubber, "describe_endpoint")
    stubber.add_response("create_model", {"ModelArn": "arn:aws:sagemaker:us-east-1:123456789012:model/mine"})
    stubber.add_response("create_endpoint_config", {"EndpointConfigArn": ARN})
    stubber.add_response("create_endpoint", {"EndpointArn": ARN})
    stubber.add_response("describe_endpoint", endpoint("Creating"))
    stubber.add_response("describe_endpoint", endpoint("Creating"))
    stubber.add_response("describe_endpoint", endpoint("InService"))
    stubber.add_response("create_inference_component", {"InferenceComponentArn": COMPONENT_ARN})
    stubber.add_response("describe_inference_component", component("Creating"))
    stubber.add_response("describe_inference_component", component("InService"))
    scaling.add_response("register_scalable_target", {})
    scaling.add_response("put_scaling_policy", {"PolicyARN": "arn"})
    plan = checked(
        Deployment(
            name="mine",
            image=IMAGE,
            role_arn=ROLE,
            component=Component(),
            scaling=Scaling(min_capacity=1, max_capacity=2),
        )
    )
    deploy(tool, plan, wait=True, model_only=False)
    stubber.assert_no_pending_responses()
    scaling.assert_no_pending_responses()
    assert said.slept_s == [15.0] * 3
    assert said.lines.count("endpoint mine: Creating") == 1, "a state is told once"
    assert said.lines[-1].endswith("--stream --inference-component mine")


def test_an_endpoint_that_fails_is_kept_for_its_logs(recorded: Recorded) -> None:
    tool, stubber = recorded("sagemaker")
    missing(stubber, "describe_endpoint")
    stubber.add_response("create_model", {"ModelArn": "arn:aws:sagemaker:us-east-1:123456789012:model/mine"})
    stubber.add_response("create_endpoint_config", {"EndpointConfigArn": ARN})
    stubber.add_response("create_endpoint", {"EndpointArn": ARN})
    stubber.add_response("describe_endpoint", endpoint("Failed", FailureReason="did not pass the ping health check."))
    plan = checked(Deployment(name="mine", image=IMAGE, role_arn=ROLE))
    with pytest.raises(ToolError, match=r"is Failed \(did not pass the ping.*see `python -m sagemaker logs mine`"):
        deploy(tool, plan, wait=True, model_only=False)
    stubber.assert_no_pending_responses()


def test_components_are_deleted_before_their_endpoint(recorded: Recorded, said: Said) -> None:
    tool, stubber = recorded("sagemaker")
    _, scaling = recorded("application-autoscaling")
    config = {"EndpointConfigName": "mine", "EndpointConfigArn": ARN, "CreationTime": NOW}
    variants = [{"VariantName": "AllTraffic", "InstanceType": GPU, "InitialInstanceCount": 1}]
    stubber.add_response("describe_endpoint_config", {**config, "ProductionVariants": variants})
    stubber.add_response("describe_endpoint", endpoint("InService"))
    stubber.add_response("list_tags", TAGS)
    resources = ["inference-component/mine", "endpoint/mine/variant/AllTraffic"]
    target = {
        "ServiceNamespace": "sagemaker",
        "ResourceId": "inference-component/mine",
        "ScalableDimension": "sagemaker:inference-component:DesiredCopyCount",
    }
    registered = {**target, "MinCapacity": 1, "MaxCapacity": 2, "RoleARN": "arn", "CreationTime": NOW}
    query = {"ServiceNamespace": "sagemaker", "ResourceIds": resources}
    scaling.add_response("describe_scalable_targets", {"ScalableTargets": [registered]}, query)
    scaling.add_response("deregister_scalable_target", {}, target)
    stubber.add_response("list_inference_components", {"InferenceComponents": [_listed("InService")]})
    stubber.add_response("list_tags", TAGS, {"ResourceArn": COMPONENT_ARN})
    stubber.add_response("delete_inference_component", {}, {"InferenceComponentName": "mine"})
    stubber.add_response("describe_inference_component", component("Deleting"))
    missing(stubber, "describe_inference_component")
    stubber.add_response("delete_endpoint", {}, {"EndpointName": "mine"})
    missing(stubber, "describe_model")
    stubber.add_response("list_tags", TAGS)
    stubber.add_response("delete_endpoint_config", {}, {"EndpointConfigName": "mine"})
    delete(tool, "mine")
    stubber.assert_no_pending_responses()
    scaling.assert_no_pending_responses()
    assert said.lines[:3] == [
        "ended auto scaling of inference-component/mine",
        "deleted inference component mine",
        "deleted endpoint mine",
    ]
    assert "there is no model mine" in said.lines


def test_an_endpoint_with_somebody_elses_component_is_kept(recorded: Recorded) -> None:
    tool, stubber = recorded("sagemaker")
    _, scaling = recorded("application-autoscaling")
    missing(stubber, "describe_endpoint_config")
    stubber.add_response("describe_endpoint", endpoint("InService"))
    stubber.add_response("list_tags", TAGS)
    scaling.add_response("describe_scalable_targets", {"ScalableTargets": []})
    stubber.add_response("list_inference_components", {"InferenceComponents": [_listed("InService")]})
    stubber.add_response("list_tags", {"Tags": []}, {"ResourceArn": COMPONENT_ARN})
    with pytest.raises(ToolError, match="inference component mine on endpoint mine has no tag made-by"):
        delete(tool, "mine")
    stubber.assert_no_pending_responses()


def _listed(state: str) -> dict[str, Any]:
    return {**component(state), "VariantName": "AllTraffic"}


def test_the_status_of_an_endpoint_in_trouble(recorded: Recorded, said: Said) -> None:
    tool, stubber = recorded("sagemaker")
    variant = {
        "VariantName": "AllTraffic",
        "CurrentInstanceCount": 0,
        "DesiredInstanceCount": 2,
        "VariantStatus": [{"Status": "Creating", "StatusMessage": "no capacity"}],
    }
    failed = endpoint("Failed", FailureReason="no capacity", ProductionVariants=[variant])
    stubber.add_response("describe_endpoint", failed)
    config = {"EndpointConfigName": "mine", "EndpointConfigArn": ARN, "CreationTime": NOW}
    variants = [{"VariantName": "AllTraffic", "InstanceType": GPU}]
    stubber.add_response("describe_endpoint_config", {**config, "ProductionVariants": variants})
    stubber.add_response("list_inference_components", {"InferenceComponents": [_listed("Failed")]})
    status(tool, "mine")
    assert said.lines == [
        "endpoint mine: Failed",
        "  reason: no capacity",
        f"  variant AllTraffic: 0 of 2 × {GPU}",
        "    Creating: no capacity",
        "  inference component mine: Failed",
        "next: python -m sagemaker logs mine, then python -m sagemaker delete mine",
    ]


# Batch jobs.

JOB = ["transform", *BASE, "mine", "--input", "s3://bucket/in", "--output", "s3://bucket/out", "--job-name", "job"]


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


# Dry runs, and what goes wrong.


@pytest.mark.parametrize(
    ("arguments", "operations"),
    [
        (
            [*DEPLOY[3:], "--model", "a/b-1B", "--max-instances", "2"],
            "CreateModel CreateEndpointConfig CreateEndpoint RegisterScalableTarget PutScalingPolicy",
        ),
        (["--image", IMAGE, "--role", "r", "--model", "a/b-1B", "--model-only"], "GetRole CreateModel"),
        (
            [*DEPLOY[3:], "--component"],
            "CreateModel CreateEndpointConfig CreateEndpoint CreateInferenceComponent",
        ),
    ],
)
def test_a_dry_deploy_needs_no_aws(
    no_aws: None, capsys: pytest.CaptureFixture[str], arguments: list[str], operations: str
) -> None:
    assert main(["deploy", *arguments, "--dry-run"]) == 0
    calls = json.loads(capsys.readouterr().out)
    assert [call["operation"] for call in calls] == operations.split()
    for call in calls:
        assert set(call) == {"service", "operation", "parameters"}
        assert complaints(Call(**call)) == []


@pytest.mark.parametrize(
    ("arguments", "operation"),
    [
        (JOB[:1] + JOB[3:], "CreateTransformJob"),
        (["status"], "ListEndpoints"),
        (["status", "mine"], "DescribeEndpoint"),
        (["status", "mine", "--transform"], "DescribeTransformJob"),
        (["logs", "mine"], "FilterLogEvents"),
        (["delete", "mine"], "DeregisterScalableTarget"),
        (["invoke", "mine", "Hi"], "InvokeEndpoint"),
        (["invoke", "mine", "Hi", "--stream"], "InvokeEndpointWithResponseStream"),
        (["invoke", "mine", "--async", "--input-location", "s3://bucket/in"], "InvokeEndpointAsync"),
    ],
)
def test_other_dry_runs(no_aws: None, capsys: pytest.CaptureFixture[str], arguments: list[str], operation: str) -> None:
    assert main([*arguments, "--dry-run"]) == 0
    calls = json.loads(capsys.readouterr().out)
    assert calls[0]["operation"] == operation
    for call in calls:
        assert complaints(Call(**call)) == []


@pytest.fixture
def no_aws(monkeypatch: pytest.MonkeyPatch) -> None:
    """No credentials, no region, and no way to the network."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "/nowhere")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr("socket.socket.connect", refuse)


def test_no_credentials_and_no_region_are_one_line(no_aws: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", *BASE]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "there are no AWS credentials: run `aws configure` or `aws sso login`" in error
    assert main(["status"]) == 1
    assert "no AWS region is set: give --region" in capsys.readouterr().err
    assert main(["status", "--profile", "nobody"]) == 1
    assert "aws configure list-profiles" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "message", "words"),
    [
        ("ResourceLimitExceeded", "The account-level limit is 0.", "ask for a larger quota"),
        ("AccessDeniedException", "User x may not.", "policy deployer"),
        ("ExpiredTokenException", "expired", "the credentials are not valid"),
        ("ValidationException", "Cannot create already existing model", "`python -m sagemaker delete NAME`"),
        ("ValidationException", "Could not assume role arn:x.", "policy trust"),
        ("ThrottlingException", "Rate exceeded", "wait a minute"),
        ("ValidationException", "Something\n  else.", r"Something else \(ValidationException\)"),
    ],
)
def test_what_aws_refuses_is_one_line_with_the_next_thing_to_do(
    recorded: Recorded, code: str, message: str, words: str
) -> None:
    tool, stubber = recorded("sagemaker")
    stubber.add_client_error("create_model", code, message)
    with pytest.raises(ToolError, match=rf"CreateModel: .*{words}") as caught:
        tool.aws.run(Call("sagemaker", "CreateModel", {"ModelName": "x"}))
    assert "\n" not in str(caught.value)


def test_parameters_that_an_older_botocore_does_not_know_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from sagemaker.aws import known_parameters
    from tests.unit.sagemaker.api_model import service_model

    parameters = {
        "ModelName": "x",
        "PrimaryContainer": {"Image": "i", "ContainerMetricsConfig": {"MetricsEndpoints": []}},
        "Containers": [{"Image": "i", "ContainerMetricsConfig": {}}],
    }
    call = Call("sagemaker", "CreateModel", parameters)
    assert known_parameters(call, service_model("sagemaker")) == parameters

    import botocore.session

    older = botocore.session.Session().get_service_model("sagemaker")
    del older._service_description["shapes"]["ContainerDefinition"]["members"]["ContainerMetricsConfig"]
    assert known_parameters(call, older) == {
        "ModelName": "x",
        "PrimaryContainer": {"Image": "i"},
        "Containers": [{"Image": "i"}],
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["deploy", "--image", IMAGE], "--role"),
        (["deploy", "--image", IMAGE, "--role", "r", "--env", "x"], "NAME=VALUE"),
        (["logs", "x", "--since", "soon"], "90s, 10m, 2h or 1d"),
        (["invoke", "x", "Hi", "--stream", "--async"], "not allowed with"),
        ([], "COMMAND"),
    ],
)
def test_bad_arguments(capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["status", "a_b"], "name 'a_b' is not 1 to 63"),
        (["status", "--transform"], "needs the job's name"),
        (["deploy", "--image", IMAGE, "--role", "r", "--min-instances", "2"], "give --max-instances too"),
        (["deploy", "--image", "/", "--role", "r"], "name '' is not"),
        (["deploy", "--image", IMAGE, "--role", ""], "neither an ARN nor a role's name"),
    ],
)
def test_settings_that_do_not_fit(capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    assert main(arguments) == 1
    assert words in capsys.readouterr().err
