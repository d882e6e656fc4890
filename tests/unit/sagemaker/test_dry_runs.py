"""Dry runs, and what goes wrong before and at AWS."""

import json

import botocore.session
import pytest

from sagemaker.__main__ import main
from sagemaker.aws import known_parameters
from sagemaker.calls import Call, ToolError
from tests.unit.sagemaker.api_model import complaints, service_model
from tests.unit.sagemaker.aws_fakes import BASE, DEPLOY, IMAGE, JOB, Recorded


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
        ("ValidationException", "Cannot update in-progress endpoint", "wait until `python -m sagemaker status NAME`"),
        ("ModelNotReadyException", "Model is not ready", "wait a minute"),
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
    parameters = {
        "ModelName": "x",
        "PrimaryContainer": {"Image": "i", "ContainerMetricsConfig": {"MetricsEndpoints": []}},
        "Containers": [{"Image": "i", "ContainerMetricsConfig": {}}],
    }
    call = Call("sagemaker", "CreateModel", parameters)
    assert known_parameters(call, service_model("sagemaker")) == parameters

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
        (["deploy", "--image", IMAGE, "--role", "r", "--copies", "2"], "--copies is for --component only"),
        (["deploy", "--image", IMAGE, "--role", "r", "--memory-mb", "2"], "give --component or --serverless too"),
        (["deploy", "--image", IMAGE, "--role", "r", "--max-concurrency", "2"], "give --serverless too"),
        (["deploy", "--image", IMAGE, "--role", "r", "--target-concurrency", "2"], "give --max-instances too"),
        (["deploy", "--image", "/", "--role", "r"], "name '' is not"),
        (["deploy", "--image", IMAGE, "--role", ""], "neither an ARN nor a role's name"),
    ],
)
def test_settings_that_do_not_fit(capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    assert main(arguments) == 1
    assert words in capsys.readouterr().err
