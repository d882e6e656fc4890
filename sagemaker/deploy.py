"""`deploy`, `delete` and `status`: an endpoint's life.

Knows the order of the calls and what waits for what. Must not know boto3.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

from sagemaker.aws import Aws
from sagemaker.calls import TAG_KEY, TAG_VALUE, Call, ToolError
from sagemaker.plan import VARIANT, Deployment, create_calls, create_model, in_service_calls

POLL_INTERVAL_S = 15.0
# Download, start and the platform's own work; SageMaker gives up by itself well before.
WAIT_TIMEOUT_S = 2 * 60 * 60.0
COMMAND = "python -m sagemaker"
_PENDING = ("Creating", "Updating", "SystemUpdating", "RollingBack", "Deleting")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tool:
    """What a command works with. say: prints one line. sleep: waits that many seconds."""

    aws: Aws
    say: Callable[[str], None]
    sleep: Callable[[float], None] = time.sleep


def deploy(tool: Tool, plan: Deployment, *, wait: bool, model_only: bool) -> None:
    """Make the model, the endpoint and what belongs to it. plan: checked. Raises ToolError.

    What this call has made is taken back when a later step fails before the endpoint exists: nothing is left that
    would block the next try. An endpoint that fails is kept, since its logs tell why.
    """
    if model_only:
        tool.aws.run(create_model(plan))
        tool.say(f"made model {plan.name}")
        tool.say(f"next: {COMMAND} transform {plan.name} --input s3://… --output s3://…")
        return
    later = in_service_calls(plan)
    if later and not wait:
        raise ToolError("a component and scaling need the endpoint in service: leave --no-wait")
    if tool.aws.find(_describe_endpoint(plan.name)) is not None:
        raise ToolError(f"endpoint {plan.name} exists: `{COMMAND} delete {plan.name}` first, or take another --name")
    _create(tool, plan)
    if not wait:
        tool.say(f"next: {COMMAND} status {plan.name}")
        return
    try:
        _finish(tool, plan.name, later)
    except KeyboardInterrupt:
        tool.say(f"the endpoint goes on and costs money; next: {COMMAND} status {plan.name}, or delete {plan.name}")
        raise
    if plan.asynchronous:
        tool.say(f"next: {COMMAND} invoke {plan.name} 'Hello' --async --wait")
    else:
        component = f" --inference-component {plan.name}" if plan.component else ""
        tool.say(f"next: {COMMAND} invoke {plan.name} 'Hello'{'' if plan.serverless else ' --stream'}{component}")


_PAST = {
    "CreateModel": "made model",
    "CreateEndpointConfig": "made endpoint configuration",
    "CreateEndpoint": "made endpoint",
    "CreateInferenceComponent": "made inference component",
    "RegisterScalableTarget": "registered for auto scaling:",
    "PutScalingPolicy": "set the scaling policy of",
}
_UNDO = {
    "CreateModel": ("DeleteModel", "ModelName"),
    "CreateEndpointConfig": ("DeleteEndpointConfig", "EndpointConfigName"),
}


def _create(tool: Tool, plan: Deployment) -> None:
    made: list[Call] = []
    for call in create_calls(plan):
        try:
            tool.aws.run(call)
        except ToolError:
            for done in reversed(made):
                operation, parameter = _UNDO[done.operation]
                # What went wrong first is what the user must see.
                with contextlib.suppress(ToolError):
                    tool.aws.run(Call("sagemaker", operation, {parameter: plan.name}))
            raise
        made.append(call)
        tool.say(f"{_PAST[call.operation]} {plan.name}")


def _finish(tool: Tool, name: str, later: list[Call]) -> None:
    _wait_for_endpoint(tool, name)
    for call in later:
        tool.aws.run(call)
        tool.say(f"{_PAST[call.operation]} {name}")
        if call.operation == "CreateInferenceComponent":
            _wait_for_component(tool, name)


def _wait_for_endpoint(tool: Tool, name: str) -> None:
    def look() -> tuple[str, str | None]:
        answer = tool.aws.run(_describe_endpoint(name))
        return answer["EndpointStatus"], answer.get("FailureReason")

    _wait(tool, f"endpoint {name}", look)


def _wait_for_component(tool: Tool, name: str) -> None:
    def look() -> tuple[str, str | None]:
        answer = tool.aws.run(_describe_component(name))
        return answer["InferenceComponentStatus"], answer.get("FailureReason")

    _wait(tool, f"inference component {name}", look)


def _wait(tool: Tool, what: str, look: Callable[[], tuple[str, str | None]]) -> None:
    give_up = time.monotonic() + WAIT_TIMEOUT_S
    last = ""
    while True:
        status, reason = look()
        if status != last:
            tool.say(f"{what}: {status}")
            last = status
        if status == "InService":
            return
        name = what.rsplit(" ", 1)[-1]
        if status not in _PENDING:
            raise ToolError(f"{what} is {status} ({reason or 'no reason given'}): see `{COMMAND} logs {name}`")
        if time.monotonic() >= give_up:
            raise ToolError(f"{what} is still {status}: see `{COMMAND} status {name}`")
        tool.sleep(POLL_INTERVAL_S)


def dry_deploy(plan: Deployment, *, model_only: bool) -> list[Call]:
    """The calls that change something, in order; between them `deploy` waits."""
    return [create_model(plan)] if model_only else [*create_calls(plan), *in_service_calls(plan)]


def delete_calls(name: str) -> list[Call]:
    """What `delete` calls for an endpoint that has everything; it leaves out what there is not."""
    return [
        *(Call("application-autoscaling", "DeregisterScalableTarget", target) for target in _scaling_targets(name)),
        Call("sagemaker", "DeleteInferenceComponent", {"InferenceComponentName": name}),
        Call("sagemaker", "DeleteEndpoint", {"EndpointName": name}),
        Call("sagemaker", "DeleteEndpointConfig", {"EndpointConfigName": name}),
        Call("sagemaker", "DeleteModel", {"ModelName": name}),
    ]


def _scaling_targets(name: str) -> Iterator[dict[str, str]]:
    for resource, dimension in (
        (f"inference-component/{name}", "sagemaker:inference-component:DesiredCopyCount"),
        (f"endpoint/{name}/variant/{VARIANT}", "sagemaker:variant:DesiredInstanceCount"),
    ):
        yield {"ServiceNamespace": "sagemaker", "ResourceId": resource, "ScalableDimension": dimension}


def delete(tool: Tool, name: str) -> None:
    """Remove what `deploy` made under this name, and nothing else: what lacks its tag stays.

    What is gone already is no error, so an interrupted delete is simply repeated. Raises ToolError.
    """
    kept = False
    config = tool.aws.find(Call("sagemaker", "DescribeEndpointConfig", {"EndpointConfigName": name}))
    endpoint = tool.aws.find(_describe_endpoint(name))
    if endpoint is not None and _is_ours(tool, endpoint["EndpointArn"]):
        _deregister(tool, name)
        # Only a variant without a model of its own can hold components, and an endpoint that holds some stays.
        if config is None or any("ModelName" not in variant for variant in config["ProductionVariants"]):
            _delete_components(tool, name)
        tool.aws.run(Call("sagemaker", "DeleteEndpoint", {"EndpointName": name}))
        tool.say(f"deleted endpoint {name}")
    else:
        kept |= _gone_or_kept(tool, "endpoint", name, endpoint)
    model = tool.aws.find(Call("sagemaker", "DescribeModel", {"ModelName": name}))
    for what, found, arn, operation, parameter in (
        ("endpoint configuration", config, "EndpointConfigArn", "DeleteEndpointConfig", "EndpointConfigName"),
        ("model", model, "ModelArn", "DeleteModel", "ModelName"),
    ):
        if found is not None and _is_ours(tool, found[arn]):
            tool.aws.find(Call("sagemaker", operation, {parameter: name}))
            tool.say(f"deleted {what} {name}")
        else:
            kept |= _gone_or_kept(tool, what, name, found)
    if kept:
        raise ToolError(f"what `{COMMAND} deploy` did not make was kept: delete it where it was made")
    tool.say(f"next: {COMMAND} status lists what is left in this region")


def _gone_or_kept(tool: Tool, what: str, name: str, found: dict[str, Any] | None) -> bool:
    tool.say(f"there is no {what} {name}" if found is None else f"kept {what} {name}: it has no tag {TAG_KEY}")
    return found is not None


def _is_ours(tool: Tool, arn: str) -> bool:
    found = tool.aws.run(Call("sagemaker", "ListTags", {"ResourceArn": arn})).get("Tags", [])
    return {"Key": TAG_KEY, "Value": TAG_VALUE} in [{"Key": tag["Key"], "Value": tag["Value"]} for tag in found]


def _deregister(tool: Tool, name: str) -> None:
    """A target outlives its endpoint, and would scale the next one of this name."""
    resources = [target["ResourceId"] for target in _scaling_targets(name)]
    query = {"ServiceNamespace": "sagemaker", "ResourceIds": resources}
    answer = tool.aws.run(Call("application-autoscaling", "DescribeScalableTargets", query))
    for found in answer.get("ScalableTargets", []):
        target = {key: found[key] for key in ("ServiceNamespace", "ResourceId", "ScalableDimension")}
        tool.aws.run(Call("application-autoscaling", "DeregisterScalableTarget", target))
        tool.say(f"ended auto scaling of {target['ResourceId']}")


def _components(tool: Tool, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = tool.aws.run(_list_components(name)).get("InferenceComponents", [])
    return found


def _delete_components(tool: Tool, name: str) -> None:
    for component in _components(tool, name):
        what = component["InferenceComponentName"]
        if not _is_ours(tool, component["InferenceComponentArn"]):
            raise ToolError(f"inference component {what} on endpoint {name} has no tag {TAG_KEY}: delete it first")
        if component["InferenceComponentStatus"] != "Deleting":
            tool.aws.find(Call("sagemaker", "DeleteInferenceComponent", {"InferenceComponentName": what}))
        give_up = time.monotonic() + WAIT_TIMEOUT_S
        while (found := tool.aws.find(_describe_component(what))) is not None:
            if found["InferenceComponentStatus"] == "Failed" or time.monotonic() >= give_up:
                raise ToolError(f"inference component {what} cannot be deleted: {found.get('FailureReason')}")
            tool.sleep(POLL_INTERVAL_S)
        tool.say(f"deleted inference component {what}")


def status_calls(name: str | None) -> list[Call]:
    """What `status` calls for an endpoint that has everything, or for all endpoints."""
    if name is None:
        return [Call("sagemaker", "ListEndpoints", {"MaxResults": 100})]
    return [
        _describe_endpoint(name),
        Call("sagemaker", "DescribeEndpointConfig", {"EndpointConfigName": name}),
        _list_components(name),
    ]


def status(tool: Tool, name: str | None) -> None:
    """Print how an endpoint is, or which endpoints there are. Raises ToolError."""
    if name is None:
        _list(tool)
        return
    endpoint = tool.aws.run(_describe_endpoint(name))
    state = endpoint["EndpointStatus"]
    tool.say(f"endpoint {name}: {state}")
    if reason := endpoint.get("FailureReason"):
        tool.say(f"  reason: {reason}")
    config = tool.aws.find(
        Call("sagemaker", "DescribeEndpointConfig", {"EndpointConfigName": endpoint["EndpointConfigName"]})
    )
    configured = {variant["VariantName"]: variant for variant in (config or {}).get("ProductionVariants", [])}
    holds_components = False
    for variant in endpoint.get("ProductionVariants", []):
        known = configured.get(variant["VariantName"], {})
        holds_components |= bool(known) and "ModelName" not in known
        tool.say(f"  variant {variant['VariantName']}: {_capacity(variant, known)}")
        for step in variant.get("VariantStatus", []):
            tool.say(f"    {step['Status']}: {step.get('StatusMessage', '')}")
    if holds_components:
        for component in _components(tool, name):
            tool.say(
                f"  inference component {component['InferenceComponentName']}: {component['InferenceComponentStatus']}"
            )
    tool.say(f"next: {_next(name, state, 'AsyncInferenceConfig' in (config or {}))}")


def _list(tool: Tool) -> None:
    token: dict[str, str] = {}
    found = False
    while True:
        answer = tool.aws.run(Call("sagemaker", "ListEndpoints", {"MaxResults": 100, **token}))
        for endpoint in answer["Endpoints"]:
            found = True
            tool.say(f"endpoint {endpoint['EndpointName']}: {endpoint['EndpointStatus']}")
        if not answer.get("NextToken"):
            break
        token = {"NextToken": answer["NextToken"]}
    region = tool.aws.region
    tool.say(f"next: {COMMAND} status NAME" if found else f"no endpoint in {region}; next: {COMMAND} deploy --help")


def _capacity(variant: dict[str, Any], configured: dict[str, Any]) -> str:
    if serverless := variant.get("CurrentServerlessConfig"):
        return f"serverless, {serverless['MemorySizeInMB']} MB, up to {serverless['MaxConcurrency']} at once"
    current, desired = variant.get("CurrentInstanceCount", 0), variant.get("DesiredInstanceCount", 0)
    return f"{current} of {desired} × {configured.get('InstanceType', 'unknown type')}"


def _next(name: str, state: str, is_async: bool) -> str:
    if state == "InService":
        return f"{COMMAND} invoke {name} 'Hello'" + (" --async --wait" if is_async else "")
    if state in _PENDING:
        return f"{COMMAND} logs {name} --follow"
    return f"{COMMAND} logs {name}, then {COMMAND} delete {name}"


def _describe_endpoint(name: str) -> Call:
    return Call("sagemaker", "DescribeEndpoint", {"EndpointName": name})


def _describe_component(name: str) -> Call:
    return Call("sagemaker", "DescribeInferenceComponent", {"InferenceComponentName": name})


def _list_components(name: str) -> Call:
    return Call("sagemaker", "ListInferenceComponents", {"EndpointNameEquals": name, "MaxResults": 100})
