"""The commands' settings.

Knows argparse and each setting's default and reason. What a command does with them is in `commands`.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sagemaker import commands as run
from sagemaker import local_command, plan, transform
from sagemaker.instances import DEFAULT_INSTANCE_TYPE
from sagemaker.logs import parse_since
from sagemaker.policy import KINDS

if TYPE_CHECKING:
    _Commands = argparse._SubParsersAction[argparse.ArgumentParser]


class _Intermixed(argparse.ArgumentParser):
    """Takes `invoke NAME --stream PROMPT`, where argparse itself takes no prompt after a setting."""

    _within = False

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        if self._within:
            return super().parse_known_args(args, namespace)
        self._within = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._within = False


def parser() -> argparse.ArgumentParser:
    """The whole command line. Each command's settings carry `run`, a function of these settings."""
    whole = argparse.ArgumentParser(prog="python -m sagemaker", description="Tools for SageMaker users.")
    kind: type[argparse.ArgumentParser] = _Intermixed
    found = whole.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=kind)
    _deploy(found)
    _invoke(found)
    _transform(found)
    _status(found)
    _logs(found)
    _delete(found)
    _policy(found)
    local_command.add_parser(found)
    return whole


def _aws(command: argparse.ArgumentParser) -> None:
    command.add_argument("--region", help="AWS region (default: boto3's)")
    command.add_argument("--profile", help="profile of the AWS configuration (default: boto3's)")
    command.add_argument(
        "--dry-run", action="store_true", help="print the API calls as JSON; needs no credentials and no network"
    )


def _deploy(found: "_Commands") -> None:
    command = found.add_parser("deploy", help="make an endpoint of an image and a model")
    command.set_defaults(run=run.deploy)
    _aws(command)
    command.add_argument("--image", required=True, help="URI of the image in ECR")
    command.add_argument("--role", required=True, help="execution role: its ARN, or its name")
    command.add_argument("--model", help="s3://BUCKET/PREFIX/, s3://….tar.gz, or a model id of the hub")
    command.add_argument("--name", help="of endpoint, configuration and model (default: from the model's)")
    command.add_argument("--env", action="append", default=[], type=_pair, metavar="NAME=VALUE", help="may be repeated")
    command.add_argument("--tag", action="append", default=[], type=_pair, metavar="KEY=VALUE", help="may be repeated")
    command.add_argument("--no-wait", action="store_true", help="return at once, not when the endpoint is in service")
    command.add_argument("--model-only", action="store_true", help="make the model alone, for batch transform")
    _deploy_instances(command)
    _deploy_kinds(command)


def _deploy_instances(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("instances")
    group.add_argument("--instance-type", help=f"default: by the model's size; {DEFAULT_INSTANCE_TYPE} if unknown")
    group.add_argument("--model-gb", type=float, help="size of the weights, where the model's name does not tell")
    group.add_argument("--instances", type=int, default=1, help="to start with (default: 1)")
    group.add_argument("--min-instances", type=int, default=None, help="of auto scaling (default: 1; async: 0)")
    group.add_argument("--max-instances", type=int, help="turns auto scaling on; copies, with --component")
    group.add_argument(
        "--target-concurrency",
        type=float,
        help="requests at once per copy that scaling aims at; async: waiting requests "
        f"(default: {plan.TARGET_CONCURRENCY:g})",
    )
    group.add_argument(
        "--ami-version",
        help=f"host's image; default on GPUs: {plan.CUDA_13_AMI}, whose driver CUDA 13 needs; '' is the platform's",
    )
    group.add_argument("--volume-gb", type=int, help="disk of an instance without local NVMe")
    group.add_argument("--download-timeout-s", type=int, default=plan.DOWNLOAD_TIMEOUT_S, help="default: %(default)s")
    group.add_argument(
        "--startup-timeout-s",
        type=int,
        help=f"until /ping answers (default: {plan.STARTUP_TIMEOUT_S}; from the hub: {plan.HUB_STARTUP_TIMEOUT_S})",
    )
    group.add_argument(
        "--routing",
        choices=("LEAST_OUTSTANDING_REQUESTS", "RANDOM", "PREFIX_AWARE"),
        default="LEAST_OUTSTANDING_REQUESTS",
        help="default: %(default)s",
    )
    group.add_argument(
        "--metrics-path",
        default="/metrics",
        help="Prometheus metrics of the container; '' for none (default: %(default)s)",
    )
    group.add_argument("--network-isolation", action="store_true", help="the container reaches no network")
    group.add_argument("--subnet", action="append", default=[], help="may be repeated")
    group.add_argument("--security-group", action="append", default=[], help="may be repeated")


def _deploy_kinds(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("other kinds of endpoint")
    group.add_argument("--component", action="store_true", help="place the model as an inference component")
    group.add_argument("--copies", type=int, help="of the component (default: 1)")
    group.add_argument("--accelerators", type=int, help="GPUs per copy of the component (default: 1)")
    group.add_argument("--memory-mb", type=int, help="per copy of the component; or of the serverless endpoint (6144)")
    group.add_argument("--async-output", metavar="S3", help="make an asynchronous endpoint that answers there")
    group.add_argument("--serverless", action="store_true", help="CPU only: needs the image's CPU variant")
    group.add_argument("--max-concurrency", type=int, help="of the serverless endpoint (default: 4)")


def _invoke(found: "_Commands") -> None:
    command = found.add_parser("invoke", help="send one request, print its answer")
    command.set_defaults(run=run.invoke)
    _aws(command)
    command.add_argument("name", help="the endpoint")
    source = command.add_mutually_exclusive_group()
    command.add_argument("prompt", nargs="?", help="default: what is on stdin")
    source.add_argument("--file", type=Path, help="read the prompt, or with --raw the body, from here")
    source.add_argument("--input-location", metavar="S3", help="of the body of an asynchronous request")
    way = command.add_mutually_exclusive_group()
    way.add_argument("--stream", action="store_true", help="print the text as it comes")
    way.add_argument("--async", dest="asynchronous", action="store_true", help="hand in, and answer to S3")
    command.add_argument("--wait", action="store_true", help="with --async: wait for the answer and print it")
    command.add_argument("--wait-s", type=float, default=3600.0, help="how long --wait waits (default: %(default)g)")
    command.add_argument("--raw", action="store_true", help="the input is the request's body; print the answer's body")
    command.add_argument("--content-type", default="application/json", help="with --raw (default: %(default)s)")
    command.add_argument("--accept", help="content type of the answer")
    command.add_argument("--system", help="the system message")
    command.add_argument("--max-tokens", type=int, default=512, help="default: %(default)s")
    command.add_argument("--temperature", type=float, help="default: the model's")
    command.add_argument("--session-id", help="NEW_SESSION opens one")
    command.add_argument("--custom-attributes")
    command.add_argument("--inference-id")
    command.add_argument("--inference-component")
    command.add_argument("--target-model")
    command.add_argument("--target-variant")
    command.add_argument("--endpoint-url", help="of the SageMaker Runtime; that of `python -m sagemaker local`, say")


def _transform(found: "_Commands") -> None:
    command = found.add_parser("transform", help="run JSON lines in S3 through the model as a batch job")
    command.set_defaults(run=run.transform)
    _aws(command)
    command.add_argument("model_name", metavar="name", help="the model that `deploy` made")
    command.add_argument("--input", required=True, metavar="S3", help="an object or a prefix of JSON lines")
    command.add_argument("--output", required=True, metavar="S3", help="prefix of the answers")
    command.add_argument("--job-name", help="default: the model's and the time")
    command.add_argument("--instance-type", default=DEFAULT_INSTANCE_TYPE, help="default: %(default)s")
    command.add_argument("--instances", type=int, default=1, help="default: 1")
    command.add_argument(
        "--ami-version", help=f"host's image; default on GPUs: {transform.GPU_AMI}, the newest; '' is the platform's"
    )
    command.add_argument(
        "--max-concurrent",
        type=int,
        default=transform.MAX_CONCURRENT_TRANSFORMS,
        help="requests (default: %(default)s)",
    )
    command.add_argument(
        "--max-payload-mb", type=int, default=transform.MAX_PAYLOAD_MB, help="of a request (default: %(default)s)"
    )
    command.add_argument("--join-input", action="store_true", help="each line of the output holds its input too")
    command.add_argument("--wait", action="store_true", help="return when the job has ended")


def _status(found: "_Commands") -> None:
    command = found.add_parser("status", help="how an endpoint or a batch job is; without a name, the endpoints")
    command.set_defaults(run=run.status)
    _aws(command)
    command.add_argument("name", nargs="?")
    command.add_argument("--transform", action="store_true", help="the name is a batch job's")


def _logs(found: "_Commands") -> None:
    command = found.add_parser("logs", help="what the containers wrote")
    command.set_defaults(run=run.logs)
    _aws(command)
    command.add_argument("name")
    command.add_argument("--transform", action="store_true", help="the name is a batch job's")
    command.add_argument("--follow", action="store_true", help="go on until Ctrl-C")
    command.add_argument("--since", type=_since, default=3600.0, metavar="AGE", help="10m, 2h, 1d (default: 1h)")


def _delete(found: "_Commands") -> None:
    command = found.add_parser("delete", help="remove what `deploy` made under a name, and nothing else")
    command.set_defaults(run=run.delete)
    _aws(command)
    command.add_argument("name")


def _policy(found: "_Commands") -> None:
    command = found.add_parser("policy", help="print an IAM policy of least privilege")
    command.set_defaults(run=run.policy)
    command.add_argument("kind", choices=KINDS, help="trust, execution: of the role; deployer, caller: of people")
    command.add_argument("--region", default="*")
    command.add_argument("--account", default="*", type=_account, help="12 digits")
    command.add_argument("--partition", default="aws")
    command.add_argument("--name", default="*", help="of endpoints; may be a pattern such as 'team-*'")
    command.add_argument("--repository", default="*", help="of the image in ECR")
    command.add_argument("--role", default="*", help="name of the execution role")
    command.add_argument("--read", action="append", default=[], metavar="S3", help="s3://… that is read; repeatable")
    command.add_argument(
        "--write", action="append", default=[], metavar="S3", help="s3://… that is written; repeatable"
    )


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form NAME=VALUE")
    return name, value


def _account(text: str) -> str:
    if text != "*" and not re.fullmatch(r"[0-9]{12}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not 12 digits")
    return text


def _since(text: str) -> float:
    try:
        return parse_since(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
