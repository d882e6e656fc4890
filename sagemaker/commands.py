"""From settings to actions: one function per command.

Knows which settings mean what, and the terminal. Must not know the parameters of API calls, nor boto3.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from sagemaker import deploy as endpoint
from sagemaker import invoke as invocation
from sagemaker import logs as log
from sagemaker import transform as batch
from sagemaker.aws import Access, Aws, known_calls
from sagemaker.calls import Call, ToolError, checked_name, checked_s3_uri, derived_name, print_calls
from sagemaker.plan import Async, Component, Deployment, Scaling, Serverless, checked
from sagemaker.policy import Scope
from sagemaker.policy import policy as policy_document

_ACCOUNT_OF_A_DRY_RUN = "000000000000"
_ROLE_NAME_LENGTH = 64


def _tool(settings: argparse.Namespace) -> endpoint.Tool:
    url = getattr(settings, "endpoint_url", None)
    return endpoint.Tool(
        aws=Aws(Access(region=settings.region, profile=settings.profile, endpoint_url=url)), say=_say, sleep=time.sleep
    )


def _say(line: str) -> None:
    print(line, flush=True)


def _say_aside(line: str) -> None:
    """For commands whose stdout is the answer."""
    print(line, file=sys.stderr, flush=True)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _dry(settings: argparse.Namespace, calls: list[Call]) -> bool:
    """Whether this is a dry run, whose calls are then printed."""
    if settings.dry_run:
        print_calls(known_calls(calls))
    return bool(settings.dry_run)


def deploy(settings: argparse.Namespace) -> None:
    """Make an endpoint."""
    name = checked_name(settings.name or derived_name(settings.model or settings.image.partition(":")[0]), "name")
    tool = _tool(settings)
    lookup: list[Call] = []
    role = settings.role
    if not role.startswith("arn:"):
        # A name, which only IAM can complete.
        if not 1 <= len(role) <= _ROLE_NAME_LENGTH:
            raise ToolError(f"role {role!r} is neither an ARN nor a role's name: give one of these")
        lookup = [Call("iam", "GetRole", {"RoleName": role})]
        role = f"arn:aws:iam::{_ACCOUNT_OF_A_DRY_RUN}:role/{role}"
    plan = checked(_plan(settings, name, role))
    if _dry(settings, lookup + endpoint.dry_deploy(plan, model_only=settings.model_only)):
        return
    if lookup:
        found = tool.aws.find(lookup[0])
        if found is None:
            raise ToolError(
                f"there is no role {settings.role}: make it with what `python -m sagemaker policy trust` and "
                "`… policy execution` print"
            )
        plan = checked(_plan(settings, name, found["Role"]["Arn"]))
    endpoint.deploy(tool, plan, wait=not settings.no_wait, model_only=settings.model_only)


def _plan(settings: argparse.Namespace, name: str, role_arn: str) -> Deployment:
    asynchronous = Async(output=settings.async_output) if settings.async_output else None
    least = settings.min_instances if settings.min_instances is not None else (0 if asynchronous else 1)
    _check_whose(settings)
    scaling = None
    if settings.max_instances is not None:
        given = _given(settings, "target_concurrency")
        scaling = Scaling(min_capacity=least, max_capacity=settings.max_instances, **given)
    component = Component(**_given(settings, "copies", "memory_mb", "accelerators"))
    serverless = Serverless(**_given(settings, "memory_mb", "max_concurrency"))
    return Deployment(
        name=name,
        image=settings.image,
        role_arn=role_arn,
        model=settings.model,
        size_gb=settings.model_gb,
        environment=dict(settings.env),
        instance_type=settings.instance_type,
        instances=settings.instances,
        ami_version=settings.ami_version,
        volume_gb=settings.volume_gb,
        download_timeout_s=settings.download_timeout_s,
        startup_timeout_s=settings.startup_timeout_s,
        routing=settings.routing,
        metrics_path=settings.metrics_path,
        network_isolation=settings.network_isolation,
        subnets=tuple(settings.subnet),
        security_groups=tuple(settings.security_group),
        extra_tags=dict(settings.tag),
        scaling=scaling,
        component=component if settings.component else None,
        serverless=serverless if settings.serverless else None,
        asynchronous=asynchronous,
    )


def _given(settings: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Those that were given: the defaults are their owners'."""
    return {name: getattr(settings, name) for name in names if getattr(settings, name) is not None}


def _check_whose(settings: argparse.Namespace) -> None:
    """Raises ToolError for a setting of another kind of endpoint than the one that is asked for."""
    owners = {
        "--component": (settings.component, ("copies", "accelerators")),
        "--serverless": (settings.serverless, ("max_concurrency",)),
        "--component or --serverless": (settings.component or settings.serverless, ("memory_mb",)),
        "--max-instances": (settings.max_instances is not None, ("min_instances", "target_concurrency")),
    }
    for owner, (is_there, names) in owners.items():
        for name in () if is_there else _given(settings, *names):
            raise ToolError(f"--{name.replace('_', '-')} is for {owner} only: give {owner} too")


_HEADERS = {
    "accept": "Accept",
    "session_id": "SessionId",
    "custom_attributes": "CustomAttributes",
    "inference_id": "InferenceId",
    "inference_component": "InferenceComponentName",
    "target_model": "TargetModel",
    "target_variant": "TargetVariant",
}


def invoke(settings: argparse.Namespace) -> None:
    """Send one request."""
    if settings.wait and not settings.asynchronous:
        raise ToolError("--wait is for --async: a plain call waits anyway")
    if settings.prompt is not None and (settings.file or settings.input_location):
        raise ToolError("the prompt is given twice: leave it, or --file and --input-location")
    if settings.input_location and not settings.asynchronous:
        raise ToolError("--input-location is for --async: give a prompt, or --async")
    if settings.raw and not settings.asynchronous and settings.prompt is None and sys.stdin.isatty():
        _say_aside("reading the body from the terminal; end it with Ctrl-D")
    request = invocation.Request(
        endpoint=settings.name,
        body=b"" if settings.input_location else _body(settings),
        content_type=settings.content_type,
        headers={
            parameter: value for name, parameter in _HEADERS.items() if (value := getattr(settings, name)) is not None
        },
        input_location=settings.input_location,
    )
    build = invocation.plain_call
    if settings.stream:
        build = invocation.stream_call
    elif settings.asynchronous:
        build = invocation.async_call
    if _dry(settings, [build(request)]):
        return
    tool = _tool(settings)
    aside = endpoint.Tool(aws=tool.aws, say=_say_aside, sleep=tool.sleep)
    if settings.stream:
        invocation.invoke_stream(aside, request, _write, raw=settings.raw)
    elif settings.asynchronous:
        invocation.invoke_async(aside, request, _write, wait_s=settings.wait_s if settings.wait else None)
    else:
        invocation.invoke(aside, request, _write, raw=settings.raw)


def _body(settings: argparse.Namespace) -> bytes:
    text = _input(settings)
    if settings.raw:
        return text
    try:
        prompt = text.decode()
    except UnicodeDecodeError as error:
        raise ToolError(f"the prompt is not UTF-8 ({error.reason}): convert it, or send it with --raw") from error
    if not prompt.strip():
        raise ToolError("the prompt is empty: give it as an argument, by --file or on stdin")
    return invocation.chat_body(
        prompt,
        system=settings.system,
        max_tokens=settings.max_tokens,
        temperature=settings.temperature,
        stream=settings.stream,
    )


def _input(settings: argparse.Namespace) -> bytes:
    if settings.prompt is not None:
        return str(settings.prompt).encode("utf-8", "surrogateescape")
    if settings.file is not None:
        try:
            return Path(settings.file).read_bytes()
        except OSError as error:
            raise ToolError(f"{settings.file}: {error.strerror}: give a file that can be read") from error
    return sys.stdin.buffer.read()


def transform(settings: argparse.Namespace) -> None:
    """Start a batch job."""
    checked_name(settings.model_name, "model name")
    job = batch.Transform(
        name=settings.job_name or batch.job_name(settings.model_name),
        model_name=settings.model_name,
        input=settings.input,
        output=settings.output,
        instance_type=settings.instance_type,
        instances=settings.instances,
        ami_version=settings.ami_version,
        max_concurrent=settings.max_concurrent,
        max_payload_mb=settings.max_payload_mb,
        join_input=settings.join_input,
    )
    if not _dry(settings, [batch.create_transform_job(job)]):
        batch.transform(_tool(settings), job, wait=settings.wait)


def status(settings: argparse.Namespace) -> None:
    """Print how an endpoint or a job is."""
    if settings.transform and settings.name is None:
        raise ToolError("--transform needs the job's name: give it")
    if settings.name is not None:
        checked_name(settings.name, "name")
    calls = endpoint.status_calls(settings.name)
    if _dry(settings, [batch.describe(settings.name)] if settings.transform else calls):
        return
    if settings.transform:
        batch.status(_tool(settings), settings.name)
    else:
        endpoint.status(_tool(settings), settings.name)


def logs(settings: argparse.Namespace) -> None:
    """Print the containers' log."""
    checked_name(settings.name, "name")
    start_ms = int((time.time() - settings.since) * 1000)
    if _dry(settings, [log.filter_call(settings.name, is_transform=settings.transform, start_ms=start_ms)]):
        return
    tool = _tool(settings)
    try:
        log.logs(tool, settings.name, is_transform=settings.transform, since_s=settings.since, follow=settings.follow)
    except KeyboardInterrupt:
        # How --follow is meant to end.
        if not settings.follow:
            raise


def delete(settings: argparse.Namespace) -> None:
    """Remove what `deploy` made."""
    checked_name(settings.name, "name")
    if not _dry(settings, endpoint.delete_calls(settings.name)):
        endpoint.delete(_tool(settings), settings.name)


def policy(settings: argparse.Namespace) -> None:
    """Print an IAM policy."""
    places = {
        kind: tuple(checked_s3_uri(uri, f"--{kind}").removeprefix("s3://") for uri in getattr(settings, kind))
        for kind in ("read", "write")
    }
    scope = Scope(
        partition=settings.partition,
        region=settings.region,
        account=settings.account,
        name=settings.name,
        repository=settings.repository,
        role=settings.role,
        read=places["read"],
        write=places["write"],
    )
    print(json.dumps(policy_document(settings.kind, scope), indent=2))
