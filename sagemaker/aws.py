"""The one place that talks to AWS: it runs a Call through boto3 and turns what goes wrong into one line.

Knows boto3 and the errors that users meet. Must not know which calls a command makes, nor in which order.
"""

import dataclasses
import re
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any

import boto3
import botocore
import botocore.config
import botocore.exceptions
import botocore.session

from sagemaker.calls import Call, ToolError

# Parameters that older versions of botocore do not know, and without which an endpoint works all the same.
OPTIONAL_PARAMETERS = frozenset({"ContainerMetricsConfig", "MetricsConfig", "EnableDetailedObservability"})
# SageMaker gives a request 60 s; a client that gives up at the same moment would hide its error.
READ_TIMEOUT_S = 70
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_NOT_FOUND_CODES = ("ResourceNotFound", "ResourceNotFoundException", "NoSuchEntity", "NoSuchKey", "404")
_NO_CREDENTIALS = (
    botocore.exceptions.NoCredentialsError,
    botocore.exceptions.PartialCredentialsError,
    botocore.exceptions.CredentialRetrievalError,
    botocore.exceptions.TokenRetrievalError,
    botocore.exceptions.SSOError,
)
_LOGIN = "run `aws configure` or `aws sso login`, or name a --profile"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Access:
    """Where and as whom to call. endpoint_url: of the SageMaker Runtime only, such as that of a local endpoint."""

    region: str | None = None
    profile: str | None = None
    endpoint_url: str | None = None


class Aws:
    """Runs calls; a client per service, made when it is first needed."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._session: Any = None
        self._clients: dict[str, Any] = {}

    @property
    def endpoint_url(self) -> str | None:
        """The address of the SageMaker Runtime that was named; None for the platform's."""
        return self._access.endpoint_url

    @property
    def region(self) -> str:
        """The region of the calls; "" where none is known."""
        return str(self.client("sagemaker").meta.region_name)

    def client(self, service: str) -> Any:
        """boto3's client of the service. Raises ToolError without a region, or for an unknown profile."""
        if service not in self._clients:
            try:
                self._clients[service] = self._make(service)
            except (botocore.exceptions.BotoCoreError, ValueError) as error:
                raise ToolError(explain(error)) from error
        return self._clients[service]

    def _make(self, service: str) -> Any:
        if self._session is None:
            self._session = boto3.session.Session(region_name=self._access.region, profile_name=self._access.profile)
        # A retried invocation would generate twice, and be paid twice.
        attempts = 1 if service == "sagemaker-runtime" else 5
        config = botocore.config.Config(
            read_timeout=READ_TIMEOUT_S,
            connect_timeout=10,
            retries={"total_max_attempts": attempts, "mode": "standard"},
        )
        arguments: dict[str, Any] = {"config": config}
        if service == "sagemaker-runtime" and self._access.endpoint_url:
            arguments["endpoint_url"] = self._access.endpoint_url
            if urllib.parse.urlsplit(self._access.endpoint_url).hostname in _LOOPBACK:
                # A local endpoint checks no signature, and no one should need an account to call it.
                arguments.update(aws_access_key_id="local", aws_secret_access_key="local")
                arguments["region_name"] = self._session.region_name or "us-east-1"
        return self._session.client(service, **arguments)

    def run(self, call: Call) -> dict[str, Any]:
        """Make the call; its answer. Raises ToolError, in one line with the next thing to do."""
        try:
            return self.attempt(call)
        except (botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError) as error:
            raise ToolError(explain(error, call)) from error

    def find(self, call: Call) -> dict[str, Any] | None:
        """As `run`, but None when the thing that the call names does not exist."""
        try:
            return self.attempt(call)
        except botocore.exceptions.ClientError as error:
            if is_not_found(error):
                return None
            raise ToolError(explain(error, call)) from error
        except botocore.exceptions.BotoCoreError as error:
            raise ToolError(explain(error, call)) from error

    def events(self, stream: Any) -> Iterator[dict[str, Any]]:
        """The events of a streamed answer. Raises ToolError when it breaks off."""
        try:
            yield from stream
        except (botocore.exceptions.ClientError, botocore.exceptions.BotoCoreError) as error:
            raise ToolError(explain(error)) from error

    def attempt(self, call: Call) -> dict[str, Any]:
        """As `run`, with botocore's own errors."""
        client = self.client(call.service)
        parameters = known_parameters(call, client.meta.service_model)
        answer: dict[str, Any] = getattr(client, botocore.xform_name(call.operation))(**parameters)
        return answer


def known_parameters(call: Call, service_model: Any) -> dict[str, Any]:
    """The call's parameters without those of OPTIONAL_PARAMETERS that this botocore does not know.

    service_model: botocore's, of the call's service.
    """
    shape = service_model.operation_model(call.operation).input_shape
    return dict(_known(call.parameters, shape)) if shape is not None else call.parameters


def _known(value: Any, shape: Any) -> Any:
    if isinstance(value, Mapping) and shape.type_name == "structure":
        return {
            name: _known(item, shape.members[name]) if name in shape.members else item
            for name, item in value.items()
            if name in shape.members or name not in OPTIONAL_PARAMETERS
        }
    if isinstance(value, list) and shape.type_name == "list":
        return [_known(item, shape.member) for item in value]
    return value


def known_calls(calls: list[Call]) -> Iterator[Call]:
    """The calls as `Aws.run` would send them; needs neither credentials nor network."""
    session = botocore.session.Session()
    for call in calls:
        model = session.get_service_model(call.service)
        yield dataclasses.replace(call, parameters=known_parameters(call, model))


def is_not_found(error: botocore.exceptions.ClientError) -> bool:
    """Whether AWS says that the thing does not exist; SageMaker has no code of its own for that."""
    code, message = _code_and_message(error)
    return code in _NOT_FOUND_CODES or bool(re.search(r"could not find|does not exist|not found", message, re.I))


def explain(error: Exception, call: Call | None = None) -> str:
    """One line that says what went wrong and what to do next."""
    doing = f"{call.operation}: " if call is not None else ""
    if isinstance(error, botocore.exceptions.ClientError):
        return doing + _explain_answer(error)
    if isinstance(error, _NO_CREDENTIALS):
        return f"{doing}there are no AWS credentials: {_LOGIN}"
    if isinstance(error, botocore.exceptions.NoRegionError):
        return f"{doing}no AWS region is set: give --region, or set AWS_REGION"
    if isinstance(error, botocore.exceptions.ProfileNotFound):
        return f"{error}: `aws configure list-profiles` names those that exist"
    if isinstance(error, botocore.exceptions.ReadTimeoutError):
        return f"{doing}no answer within {READ_TIMEOUT_S} s: ask for less, or use --stream"
    if isinstance(error, botocore.exceptions.ConnectionError | botocore.exceptions.HTTPClientError):
        return f"{doing}{_one_line(error)}: check the region, the network and --endpoint-url"
    if isinstance(error, botocore.exceptions.ParamValidationError):
        return f"{doing}{_one_line(error)}"
    return f"{doing}{_one_line(error)}"


def _explain_answer(error: botocore.exceptions.ClientError) -> str:
    code, message = _code_and_message(error)
    message = message.rstrip(".")
    if code == "ModelError":
        status = error.response.get("OriginalStatusCode")
        original = error.response.get("OriginalMessage") or message
        return f"the container answered {status}: {_one_line(original)} (see `python -m sagemaker logs`)"
    if code in ("AccessDenied", "AccessDeniedException", "UnauthorizedOperation"):
        return f"{message}: `python -m sagemaker policy deployer` prints what the caller needs"
    if code in ("ExpiredToken", "ExpiredTokenException", "InvalidClientTokenId", "UnrecognizedClientException"):
        return f"{message}: the credentials are not valid (any more): {_LOGIN}"
    if code == "ResourceLimitExceeded":
        return f"{message}: ask for a larger quota in the Service Quotas console, or name another --instance-type"
    if code == "ResourceInUse" or "already exist" in message.lower():
        return f"{message}: `python -m sagemaker delete NAME` removes it, or take another --name"
    if "assume" in message.lower() and "role" in message.lower():
        return f"{message}: the role must trust sagemaker.amazonaws.com (`python -m sagemaker policy trust`)"
    if "in-progress" in message.lower() or "in progress" in message.lower():
        return f"{message}: wait until `python -m sagemaker status NAME` shows it in service or failed"
    if code in ("ThrottlingException", "Throttling", "ServiceUnavailable", "ModelNotReadyException"):
        return f"{message}: wait a minute and try again"
    if is_not_found(error):
        return f"{message}: `python -m sagemaker status` lists what there is in this region"
    return f"{message} ({code})"


def _code_and_message(error: botocore.exceptions.ClientError) -> tuple[str, str]:
    fields = error.response.get("Error", {})
    return str(fields.get("Code", "")), _one_line(fields.get("Message") or error)


def _one_line(text: object) -> str:
    return " ".join(str(text).split())
