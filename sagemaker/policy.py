"""IAM policies of least privilege, printed by `policy`.

Knows which actions each party needs, and on what. Must not know boto3.
"""

import dataclasses
from typing import Any

KINDS = ("trust", "execution", "deployer", "caller")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scope:
    """What the policies are about; "*" is any.

    name: of the endpoint, or a pattern such as "team-*". repository and role: names. read, write: places in S3 as
    "BUCKET/PREFIX", or an object as "BUCKET/KEY".
    """

    partition: str = "aws"
    region: str = "*"
    account: str = "*"
    name: str = "*"
    repository: str = "*"
    role: str = "*"
    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()


def policy(kind: str, scope: Scope) -> dict[str, Any]:
    """The policy document. kind: one of KINDS."""
    builders = {"trust": _trust, "execution": _execution, "deployer": _deployer, "caller": _caller}
    return {"Version": "2012-10-17", "Statement": builders[kind](scope)}


def _trust(scope: Scope) -> list[dict[str, Any]]:
    """Who may take the execution role on: SageMaker, for resources of this account only."""
    statement: dict[str, Any] = {
        "Effect": "Allow",
        "Principal": {"Service": "sagemaker.amazonaws.com"},
        "Action": "sts:AssumeRole",
    }
    if scope.account != "*":
        statement["Condition"] = {"StringEquals": {"aws:SourceAccount": scope.account}}
    return [statement]


def _execution(scope: Scope) -> list[dict[str, Any]]:
    """What SageMaker does for the endpoint under its role: fetch image and model, write logs and metrics."""
    statements = [
        # The token is the registry's; ECR knows no narrower resource for it.
        _allow("ecr:GetAuthorizationToken", on="*"),
        _allow(
            "ecr:BatchCheckLayerAvailability",
            "ecr:BatchGetImage",
            "ecr:GetDownloadUrlForLayer",
            on=_arn(scope, "ecr", f"repository/{scope.repository}"),
        ),
        _allow(
            "logs:CreateLogGroup",
            "logs:CreateLogStream",
            "logs:DescribeLogStreams",
            "logs:PutLogEvents",
            on=_arn(scope, "logs", "log-group:/aws/sagemaker/*"),
        ),
        {
            **_allow("cloudwatch:PutMetricData", on="*"),
            "Condition": {"StringLike": {"cloudwatch:namespace": ["AWS/SageMaker", "/aws/sagemaker/*"]}},
        },
    ]
    statements += [_listing(scope, place) for place in dict.fromkeys((*scope.read, *scope.write))]
    for action, places in (("s3:GetObject", scope.read), ("s3:PutObject", scope.write)):
        if places:
            statements.append({**_allow(action, on=""), "Resource": _objects(scope, places)})
    return statements


def _deployer(scope: Scope) -> list[dict[str, Any]]:
    """What `deploy`, `transform`, `status`, `logs` and `delete` call."""
    kinds = ("endpoint", "endpoint-config", "model", "inference-component", "transform-job")
    resources = [_arn(scope, "sagemaker", f"{kind}/{scope.name}") for kind in kinds]
    if scope.name != "*":
        # A job's name is its model's with the time after it.
        resources.append(_arn(scope, "sagemaker", f"transform-job/{scope.name}-*"))
    verbs = ("Create", "Describe", "Delete")
    things = ("Endpoint", "EndpointConfig", "InferenceComponent", "Model")
    actions = [f"sagemaker:{verb}{thing}" for thing in things for verb in verbs]
    actions += ["sagemaker:CreateTransformJob", "sagemaker:DescribeTransformJob", "sagemaker:AddTags"]
    # Scaling acts through SageMaker in its caller's name.
    actions += ["sagemaker:ListTags", "sagemaker:UpdateEndpointWeightsAndCapacities"]
    actions += ["sagemaker:UpdateInferenceComponentRuntimeConfig"]
    role = f"arn:{scope.partition}:iam::{scope.account}:role/{scope.role}"
    return [
        {**_allow(*actions, on=""), "Resource": resources},
        _allow("sagemaker:ListEndpoints", "sagemaker:ListInferenceComponents", on="*"),
        {
            **_allow("iam:PassRole", on=role),
            "Condition": {"StringEquals": {"iam:PassedToService": "sagemaker.amazonaws.com"}},
        },
        _allow("iam:GetRole", on=role),
        {
            **_allow(
                "application-autoscaling:RegisterScalableTarget",
                "application-autoscaling:DeregisterScalableTarget",
                "application-autoscaling:PutScalingPolicy",
                on="*",
            ),
            "Condition": {"StringEquals": {"application-autoscaling:service-namespace": "sagemaker"}},
        },
        _allow("application-autoscaling:DescribeScalableTargets", on="*"),
        {
            **_allow(
                "iam:CreateServiceLinkedRole",
                on=f"arn:{scope.partition}:iam::{scope.account}:role/aws-service-role/"
                "sagemaker.application-autoscaling.amazonaws.com/"
                "AWSServiceRoleForApplicationAutoScaling_SageMakerEndpoint",
            ),
            "Condition": {
                "StringEquals": {"iam:AWSServiceName": "sagemaker.application-autoscaling.amazonaws.com"},
            },
        },
        # Target tracking keeps its alarms in the deployer's name.
        _allow(
            "cloudwatch:PutMetricAlarm",
            "cloudwatch:DescribeAlarms",
            "cloudwatch:DeleteAlarms",
            on=_arn(scope, "cloudwatch", "alarm:TargetTracking-*"),
        ),
        _allow("logs:FilterLogEvents", on=_arn(scope, "logs", "log-group:/aws/sagemaker/*")),
    ]


def _caller(scope: Scope) -> list[dict[str, Any]]:
    """What `invoke` and any other client call, and no more."""
    resources = [
        _arn(scope, "sagemaker", f"endpoint/{scope.name}"),
        _arn(scope, "sagemaker", f"inference-component/{scope.name}"),
    ]
    actions = (
        "sagemaker:InvokeEndpoint",
        "sagemaker:InvokeEndpointAsync",
        "sagemaker:InvokeEndpointWithResponseStream",
    )
    statements = [{**_allow(*actions, on=""), "Resource": resources}]
    # The answers of asynchronous calls. To who may not list, S3 calls what is not there yet forbidden.
    if scope.write:
        statements += [_listing(scope, place) for place in scope.write]
        statements.append({**_allow("s3:GetObject", on=""), "Resource": _objects(scope, scope.write)})
    return statements


def _listing(scope: Scope, place: str) -> dict[str, Any]:
    bucket, _, prefix = place.partition("/")
    statement = _allow("s3:ListBucket", on=f"arn:{scope.partition}:s3:::{bucket}")
    if prefix := prefix.strip("/"):
        statement["Condition"] = {"StringLike": {"s3:prefix": [prefix, f"{prefix}/*"]}}
    return statement


def _objects(scope: Scope, places: tuple[str, ...]) -> list[str]:
    """The objects under each place; one that names an object itself is followed by nothing."""
    arns = []
    for place in places:
        path = place.strip("/")
        arns += [f"arn:{scope.partition}:s3:::{path}/*"]
        if "/" in path:
            arns += [f"arn:{scope.partition}:s3:::{path}"]
    return arns


def _allow(*actions: str, on: str) -> dict[str, Any]:
    return {"Effect": "Allow", "Action": list(actions), "Resource": on}


def _arn(scope: Scope, service: str, resource: str) -> str:
    return f"arn:{scope.partition}:{service}:{scope.region}:{scope.account}:{resource}"
