"""The policies allow what the tools do, and no more than is named here."""

import fnmatch
import json
from typing import Any

import pytest

from sagemaker.__main__ import main
from sagemaker.deploy import dry_deploy, status_calls
from sagemaker.invoke import Request, async_call, plain_call, stream_call
from sagemaker.logs import filter_call
from sagemaker.plan import Component, Deployment, Scaling
from sagemaker.policy import KINDS, Scope, policy
from sagemaker.transform import Transform, create_transform_job, describe
from tests.unit.sagemaker.aws_fakes import IMAGE, ROLE

SCOPE = Scope(
    region="eu-west-1",
    account="123456789012",
    name="team-*",
    repository="galley",
    role="galley",
    read=("weights/qwen", "all"),
    write=("out/answers/",),
)


def allowed(kind: str) -> set[str]:
    return {action for statement in policy(kind, SCOPE)["Statement"] for action in _list(statement["Action"])}


def _list(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else value


def statement_for(kind: str, action: str) -> dict[str, Any]:
    (found,) = [each for each in policy(kind, SCOPE)["Statement"] if action in _list(each["Action"])]
    return dict(found)


def test_the_deployer_may_do_what_the_tools_call() -> None:
    component = Deployment(
        name="team-a",
        image=IMAGE,
        role_arn=ROLE,
        component=Component(),
        scaling=Scaling(min_capacity=1, max_capacity=2),
    )
    job = Transform(name="team-a-1", model_name="team-a", input="s3://abc/in", output="s3://abc/out")
    calls = [
        *dry_deploy(component, model_only=False),
        *status_calls("team-a"),
        *status_calls(None),
        create_transform_job(job),
        describe("team-a-1"),
        filter_call("team-a", is_transform=False, start_ms=0),
    ]
    needed = {f"{call.service}:{call.operation}" for call in calls}
    # Called by deploy and delete on their way, and what tags and roles take.
    needed |= {f"sagemaker:Delete{what}" for what in ("Endpoint", "EndpointConfig", "InferenceComponent", "Model")}
    needed |= {"sagemaker:DescribeModel", "sagemaker:DescribeInferenceComponent", "sagemaker:ListTags"}
    needed |= {"sagemaker:AddTags", "iam:PassRole", "iam:GetRole"}
    needed |= {f"application-autoscaling:{verb}" for verb in ("DescribeScalableTargets", "DeregisterScalableTarget")}
    assert needed <= allowed("deployer")


def test_the_caller_may_invoke_and_nothing_else() -> None:
    request = Request(endpoint="team-a", body=b"{}")
    calls = [plain_call(request), stream_call(request), async_call(request)]
    invoking = {f"sagemaker:{call.operation}" for call in calls}
    assert allowed("caller") == invoking | {"s3:GetObject", "s3:ListBucket"}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "trust"])
def test_nothing_is_allowed_on_everything_but_what_aws_knows_no_resource_for(kind: str) -> None:
    on_all = {
        "ecr:GetAuthorizationToken",
        "cloudwatch:PutMetricData",
        "sagemaker:ListEndpoints",
        "sagemaker:ListInferenceComponents",
        "application-autoscaling:*ScalableTarget*",
        "application-autoscaling:PutScalingPolicy",
    }
    for statement in policy(kind, SCOPE)["Statement"]:
        assert statement["Effect"] == "Allow"
        for action in statement["Action"]:
            assert "*" not in action
            if statement["Resource"] == "*":
                assert any(fnmatch.fnmatch(action, pattern) for pattern in on_all), action
            for resource in _list(statement["Resource"]):
                assert resource == "*" or resource.startswith("arn:aws:")


def test_a_role_is_handed_to_sagemaker_only() -> None:
    statement = statement_for("deployer", "iam:PassRole")
    assert statement["Resource"] == "arn:aws:iam::123456789012:role/galley"
    assert statement["Condition"] == {"StringEquals": {"iam:PassedToService": "sagemaker.amazonaws.com"}}
    trust = policy("trust", SCOPE)["Statement"][0]
    assert trust["Principal"] == {"Service": "sagemaker.amazonaws.com"}
    assert trust["Condition"] == {"StringEquals": {"aws:SourceAccount": "123456789012"}}


def test_an_account_has_twelve_digits(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "trust", "--account", "123456789012"]) == 0
    for wrong in ("12345678901", "1234567890123", "12345678901a"):
        with pytest.raises(SystemExit):
            main(["policy", "trust", "--account", wrong])
        assert f"'{wrong}' is not 12 digits" in capsys.readouterr().err


def test_the_execution_role_reads_and_writes_where_it_is_told() -> None:
    assert statement_for("execution", "s3:GetObject")["Resource"] == [
        "arn:aws:s3:::weights/qwen/*",
        "arn:aws:s3:::weights/qwen",
        "arn:aws:s3:::all/*",
    ]
    assert statement_for("execution", "s3:PutObject")["Resource"][0] == "arn:aws:s3:::out/answers/*"
    listings = [each for each in policy("execution", SCOPE)["Statement"] if "s3:ListBucket" in each["Action"]]
    assert listings[0]["Condition"] == {"StringLike": {"s3:prefix": ["qwen", "qwen/*"]}}
    assert "Condition" not in listings[1]
    assert statement_for("execution", "ecr:BatchGetImage")["Resource"].endswith(":repository/galley")
    assert "s3:GetObject" not in {
        action for each in policy("execution", Scope())["Statement"] for action in each["Action"]
    }


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "execution", "--account", "123456789012", "--read", "s3://bucket/m/"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == policy("execution", Scope(account="123456789012", read=("bucket/m/",)))
    assert main(["policy", "execution", "--read", "bucket"]) == 1
    assert "s3://BUCKET/PREFIX" in capsys.readouterr().err
