"""deploy, status and delete, against moto's AWS; what moto lacks, against recorded answers."""

import dataclasses
from typing import Any

import boto3
import botocore.stub
import pytest

from sagemaker.__main__ import main
from sagemaker.calls import ToolError
from sagemaker.deploy import delete, deploy, status
from sagemaker.plan import Async, Component, Deployment, Scaling, Serverless, checked
from tests.unit.sagemaker.aws_fakes import (
    ARN,
    BASE,
    COMPONENT_ARN,
    DEPLOY,
    GPU,
    IMAGE,
    NOW,
    REGION,
    ROLE,
    TAGS,
    Recorded,
    Said,
)


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


def endpoint(state: str, **rest: Any) -> dict[str, Any]:
    moments = {"CreationTime": NOW, "LastModifiedTime": NOW}
    fields = {"EndpointName": "mine", "EndpointArn": ARN, "EndpointConfigName": "mine", "EndpointStatus": state}
    return {**fields, **moments, **rest}


def component(state: str, **rest: Any) -> dict[str, Any]:
    moments = {"CreationTime": NOW, "LastModifiedTime": NOW}
    fields = {"InferenceComponentName": "mine", "InferenceComponentArn": COMPONENT_ARN, "EndpointName": "mine"}
    return {**fields, "EndpointArn": ARN, "InferenceComponentStatus": state, **moments, **rest}


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


def test_who_interrupts_the_wait_learns_that_the_endpoint_goes_on(recorded: Recorded, said: Said) -> None:
    tool, stubber = recorded("sagemaker")

    def interrupt(duration_s: float) -> None:
        raise KeyboardInterrupt

    missing(stubber, "describe_endpoint")
    stubber.add_response("create_model", {"ModelArn": "arn:aws:sagemaker:us-east-1:123456789012:model/mine"})
    stubber.add_response("create_endpoint_config", {"EndpointConfigArn": ARN})
    stubber.add_response("create_endpoint", {"EndpointArn": ARN})
    stubber.add_response("describe_endpoint", endpoint("Creating"))
    plan = checked(Deployment(name="mine", image=IMAGE, role_arn=ROLE))
    with pytest.raises(KeyboardInterrupt):
        deploy(dataclasses.replace(tool, sleep=interrupt), plan, wait=True, model_only=False)
    assert said.lines[-1].startswith("the endpoint goes on and costs money; next: python -m sagemaker status mine")


def test_a_failed_undoing_does_not_hide_what_failed_first(recorded: Recorded) -> None:
    tool, stubber = recorded("sagemaker")
    missing(stubber, "describe_endpoint")
    stubber.add_response("create_model", {"ModelArn": "arn:aws:sagemaker:us-east-1:123456789012:model/mine"})
    stubber.add_client_error("create_endpoint_config", "ResourceLimitExceeded", "The limit is 0 Instances.")
    stubber.add_client_error("delete_model", "AccessDeniedException", "not you")
    plan = checked(Deployment(name="mine", image=IMAGE, role_arn=ROLE))
    with pytest.raises(ToolError, match="CreateEndpointConfig: The limit is 0 Instances: ask for a larger quota"):
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
