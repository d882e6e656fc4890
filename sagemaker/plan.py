"""What `deploy` asks of AWS: from its options to the calls, as plain dictionaries.

Knows the parameters of SageMaker's and Application Auto Scaling's requests, and why each default is what it is. Must
not know boto3: everything here runs without credentials, network or AWS.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from sagemaker.calls import Call, ToolError, checked_name, checked_s3_uri, tags
from sagemaker.instances import has_gpu, instance_type_for, weights_gb

VARIANT = "AllTraffic"
# NVIDIA's driver 580, which CUDA 13 needs. The default image of a GPU instance has an older one, and a container that
# needs a newer one ends there without a word in its log.
CUDA_13_AMI = "al2023-ami-sagemaker-inference-gpu-4-1"
# Platform and container in sequence: SageMaker copies the model's objects, then starts the container and asks /ping.
# The platform's own limit for the second is 8 minutes, which is short for a hub download or a first compilation.
DOWNLOAD_TIMEOUT_S = 1800
STARTUP_TIMEOUT_S = 900
HUB_STARTUP_TIMEOUT_S = 1800
# Requests at once per copy of the model that scaling aims at: a decode batch of this size costs one GPU little more
# time per token than a batch of one, and longer queues show as time to first token.
TARGET_CONCURRENCY = 16.0
# A copy takes minutes to start; to take one away sooner than it came would make the number of copies swing.
SCALE_OUT_COOLDOWN_S = 180
SCALE_IN_COOLDOWN_S = 300
# CreateModel's limits: entries, bytes of a name or value, bytes of all.
MAX_VARIABLES = 100
MAX_VARIABLE_BYTES = 1024
MAX_VARIABLES_BYTES = 32 * 1024
_ROLE_ARN = re.compile(r"arn:aws[a-z-]*:iam::\d{12}:role/\S+")
_LOCAL_PATHS = ("/", "./", "../", "~")
_IMAGE = re.compile(r"\S{1,255}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scaling:
    """Target tracking of requests at once. min_capacity and max_capacity count instances, or copies of a component."""

    min_capacity: int
    max_capacity: int
    target_concurrency: float = TARGET_CONCURRENCY


@dataclasses.dataclass(frozen=True, kw_only=True)
class Component:
    """Place the model as an inference component, so that several models share the endpoint's instances."""

    copies: int = 1
    memory_mb: int | None = None
    accelerators: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Serverless:
    """A serverless variant: CPU only, at most 6 GB of memory, a model of one .tar.gz."""

    memory_mb: int = 6144
    max_concurrency: int = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Async:
    """Asynchronous inference: answers go to S3, a request may last an hour."""

    output: str
    max_concurrency_per_instance: int = int(TARGET_CONCURRENCY)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Deployment:
    """All that `deploy` is told. `model` is s3://…, a hub's id, or None where the image or `environment` has it.

    instance_type None: by the model's size (`size_gb`, or what the name tells). ami_version and metrics_path: "" for
    the platform's own. `checked` must have seen it before calls are built of it.
    """

    name: str
    image: str
    role_arn: str
    model: str | None = None
    size_gb: float | None = None
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    instance_type: str | None = None
    instances: int = 1
    ami_version: str | None = None
    volume_gb: int | None = None
    download_timeout_s: int = DOWNLOAD_TIMEOUT_S
    startup_timeout_s: int | None = None
    routing: str = "LEAST_OUTSTANDING_REQUESTS"
    metrics_path: str = "/metrics"
    network_isolation: bool = False
    subnets: tuple[str, ...] = ()
    security_groups: tuple[str, ...] = ()
    extra_tags: Mapping[str, str] = dataclasses.field(default_factory=dict)
    scaling: Scaling | None = None
    component: Component | None = None
    serverless: Serverless | None = None
    asynchronous: Async | None = None

    @property
    def chosen_instance_type(self) -> str:
        """The instance type, chosen by the size of the model where none is named."""
        return self.instance_type or instance_type_for(self.model_gb)

    @property
    def model_gb(self) -> float | None:
        """The size of the weights in GB, if it can be told."""
        return self.size_gb if self.size_gb is not None else weights_gb(self.model or "")

    @property
    def from_hub(self) -> bool:
        """Whether the container downloads the model itself."""
        return self.model is not None and not self.model.startswith("s3://")

    @property
    def is_prefix(self) -> bool:
        """Whether the model is a tree of objects in S3, rather than one .tar.gz."""
        return self.model is not None and self.model.startswith("s3://") and not self.model.endswith(".tar.gz")


def checked(plan: Deployment) -> Deployment:
    """The plan, if AWS can take it. Raises ToolError: everything that can be known is known before the first call."""
    checked_name(plan.name, "endpoint name")
    if not _IMAGE.fullmatch(plan.image):
        raise ToolError(f"image {plan.image!r} is not a URI: give ACCOUNT.dkr.ecr.REGION.amazonaws.com/REPOSITORY:TAG")
    if not _ROLE_ARN.fullmatch(plan.role_arn):
        raise ToolError(f"role {plan.role_arn!r} is not arn:aws:iam::ACCOUNT:role/NAME: give the execution role's ARN")
    if plan.model is not None and not plan.from_hub:
        checked_s3_uri(plan.model, "model")
    if plan.from_hub and plan.model and plan.model.startswith(_LOCAL_PATHS):
        raise ToolError(
            f"model {plan.model!r} is a path: upload a directory of this machine to S3; for one that the image holds "
            "leave --model, and give --env SM_GALLEY_MODEL=PATH"
        )
    for complaint in _complaints(plan):
        raise ToolError(complaint)
    if plan.asynchronous is not None:
        checked_s3_uri(plan.asynchronous.output, "asynchronous output")
    if plan.serverless is None:
        _ = plan.chosen_instance_type
    return plan


def _complaints(plan: Deployment) -> list[str]:
    rules = {
        "a serverless endpoint has no inference component: leave one of the two": plan.serverless and plan.component,
        "a serverless endpoint is never asynchronous: leave one of the two": plan.serverless and plan.asynchronous,
        "a serverless endpoint scales by itself: leave --max-instances": plan.serverless and plan.scaling,
        "a serverless endpoint has no instance type: leave --instance-type": plan.serverless and plan.instance_type,
        "a serverless endpoint has no VPC and no network isolation: leave these": plan.serverless
        and (plan.subnets or plan.security_groups or plan.network_isolation),
        "a serverless endpoint takes the model as one .tar.gz: pack it, or name a hub's model": plan.serverless
        and plan.is_prefix,
        "serverless memory is 1024, 2048, … 6144 MB: give one of these": plan.serverless
        and plan.serverless.memory_mb not in range(1024, 6145, 1024),
        "serverless concurrency is 1 to 200: give one of these": plan.serverless
        and not 1 <= plan.serverless.max_concurrency <= 200,
        "an inference component is never asynchronous: leave one of the two": plan.component and plan.asynchronous,
        "an inference component has at least one copy: give --copies 1 or more": plan.component
        and plan.component.copies < 1,
        f"SageMaker takes {MAX_VARIABLES} variables, of {MAX_VARIABLE_BYTES} bytes each and 32 KiB together: "
        "put the settings in a file beside the model": _too_large(_environment(plan)),
        "a container under network isolation reaches no hub: put the model in S3": plan.network_isolation
        and plan.from_hub,
        "a VPC needs both --subnet and --security-group: give both": bool(plan.subnets) != bool(plan.security_groups),
        "only an asynchronous endpoint scales to 0: give --min-instances 1 or more": plan.scaling
        and plan.scaling.min_capacity < (0 if plan.asynchronous else 1),
        "--max-instances is below --min-instances: raise it": plan.scaling
        and plan.scaling.max_capacity < max(1, plan.scaling.min_capacity),
        "--instances is above --max-instances: lower it, or raise the other": plan.scaling
        and plan.component is None
        and plan.instances > plan.scaling.max_capacity,
        "the target of scaling is a positive number of requests at once": plan.scaling
        and not plan.scaling.target_concurrency > 0,
        "an endpoint starts with at least one instance: give --instances 1 or more": plan.instances < 1,
    }
    return [complaint for complaint, holds in rules.items() if holds]


def _too_large(environment: Mapping[str, str]) -> bool:
    sizes = [len(text.encode()) for pair in environment.items() for text in pair]
    return (
        len(environment) > MAX_VARIABLES
        or max(sizes, default=0) > MAX_VARIABLE_BYTES
        or sum(sizes) > MAX_VARIABLES_BYTES
    )


def create_calls(plan: Deployment) -> list[Call]:
    """What makes the endpoint, in order; the endpoint is not in service when they are done."""
    return [create_model(plan), create_endpoint_config(plan), create_endpoint(plan)]


def in_service_calls(plan: Deployment) -> list[Call]:
    """What can be asked for only once the endpoint is in service: the component, then scaling."""
    component = [create_inference_component(plan)] if plan.component else []
    return component + scaling_calls(plan)


def create_model(plan: Deployment) -> Call:
    """The container and its model."""
    container: dict[str, Any] = {"Image": plan.image, "Mode": "SingleModel"}
    if plan.is_prefix:
        # As it lies: nothing is packed, copied or untarred before the container can read it.
        source = {
            "S3Uri": (plan.model or "").rstrip("/") + "/",
            "S3DataType": "S3Prefix",
            "CompressionType": "None",
        }
        container["ModelDataSource"] = {"S3DataSource": source}
    elif plan.model is not None and not plan.from_hub:
        container["ModelDataUrl"] = plan.model
    if environment := _environment(plan):
        container["Environment"] = environment
    if plan.metrics_path and plan.serverless is None:
        container["ContainerMetricsConfig"] = {"MetricsEndpoints": [{"MetricsEndpointPath": plan.metrics_path}]}
    parameters: dict[str, Any] = {
        "ModelName": plan.name,
        "PrimaryContainer": container,
        "ExecutionRoleArn": plan.role_arn,
        "Tags": tags(dict(plan.extra_tags)),
    }
    if plan.network_isolation:
        parameters["EnableNetworkIsolation"] = True
    if plan.subnets:
        parameters["VpcConfig"] = {
            "Subnets": list(plan.subnets),
            "SecurityGroupIds": list(plan.security_groups),
        }
    return Call("sagemaker", "CreateModel", parameters)


def create_endpoint_config(plan: Deployment) -> Call:
    """Instances, or none for a serverless endpoint, and how requests find them."""
    parameters: dict[str, Any] = {
        "EndpointConfigName": plan.name,
        "ProductionVariants": [_serverless_variant(plan) if plan.serverless else _variant(plan)],
        "Tags": tags(dict(plan.extra_tags)),
    }
    if plan.component:
        # The variant has no model whose role and network it could take over.
        parameters["ExecutionRoleArn"] = plan.role_arn
        if plan.network_isolation:
            parameters["EnableNetworkIsolation"] = True
        if plan.subnets:
            parameters["VpcConfig"] = {
                "Subnets": list(plan.subnets),
                "SecurityGroupIds": list(plan.security_groups),
            }
    if plan.metrics_path and plan.serverless is None:
        parameters["MetricsConfig"] = {"EnableDetailedObservability": True, "MetricPublishFrequencyInSeconds": 60}
    if plan.asynchronous:
        output = plan.asynchronous.output.rstrip("/")
        parameters["AsyncInferenceConfig"] = {
            "ClientConfig": {
                "MaxConcurrentInvocationsPerInstance": plan.asynchronous.max_concurrency_per_instance,
            },
            "OutputConfig": {"S3OutputPath": output, "S3FailurePath": f"{output}/failures"},
        }
    return Call("sagemaker", "CreateEndpointConfig", parameters)


def _serverless_variant(plan: Deployment) -> dict[str, Any]:
    assert plan.serverless is not None
    return {
        "VariantName": VARIANT,
        "ModelName": plan.name,
        "ServerlessConfig": {
            "MemorySizeInMB": plan.serverless.memory_mb,
            "MaxConcurrency": plan.serverless.max_concurrency,
        },
    }


def _variant(plan: Deployment) -> dict[str, Any]:
    instance_type = plan.chosen_instance_type
    variant: dict[str, Any] = {
        "VariantName": VARIANT,
        "InstanceType": instance_type,
        "InitialInstanceCount": plan.instances,
    }
    ami_version = plan.ami_version if plan.ami_version is not None else (CUDA_13_AMI if has_gpu(instance_type) else "")
    if ami_version:
        variant["InferenceAmiVersion"] = ami_version
    if plan.volume_gb is not None:
        variant["VolumeSizeInGB"] = plan.volume_gb
    if plan.asynchronous is None:
        # An asynchronous endpoint's instances fetch from a queue. Elsewhere the platform's default is RANDOM, under
        # which one instance queues while another is idle: requests differ in length by orders of magnitude.
        variant["RoutingConfig"] = {"RoutingStrategy": plan.routing}
    if plan.component:
        most = max(plan.instances, plan.component.copies, plan.scaling.max_capacity if plan.scaling else 1)
        if most > plan.instances:
            # Copies that find no room bring instances with them.
            variant["ManagedInstanceScaling"] = {
                "Status": "ENABLED",
                "MinInstanceCount": plan.instances,
                "MaxInstanceCount": most,
            }
        return variant
    return {**variant, "ModelName": plan.name, "InitialVariantWeight": 1.0, **_timeouts(plan)}


def create_endpoint(plan: Deployment) -> Call:
    """The endpoint itself: from here on instances cost money."""
    parameters = {"EndpointName": plan.name, "EndpointConfigName": plan.name, "Tags": tags(dict(plan.extra_tags))}
    return Call("sagemaker", "CreateEndpoint", parameters)


def create_inference_component(plan: Deployment) -> Call:
    """The model's copies on the endpoint's instances, and what each reserves of one."""
    assert plan.component is not None
    gpu = has_gpu(plan.chosen_instance_type)
    needs: dict[str, Any] = {"MinMemoryRequiredInMb": plan.component.memory_mb or _memory_mb(plan, gpu)}
    if gpu:
        needs["NumberOfAcceleratorDevicesRequired"] = plan.component.accelerators
    else:
        needs["NumberOfCpuCoresRequired"] = 1
    specification = {
        "ModelName": plan.name,
        "StartupParameters": _timeouts(plan),
        "ComputeResourceRequirements": needs,
        # A further copy on an instance need not download the image and the weights again.
        "DataCacheConfig": {"EnableCaching": True},
    }
    parameters = {
        "InferenceComponentName": plan.name,
        "EndpointName": plan.name,
        "VariantName": VARIANT,
        "Specification": specification,
        "RuntimeConfig": {"CopyCount": plan.component.copies},
        "Tags": tags(dict(plan.extra_tags)),
    }
    return Call("sagemaker", "CreateInferenceComponent", parameters)


def _memory_mb(plan: Deployment, gpu: bool) -> int:
    """The host's memory that a copy reserves: weights pass through it in pieces to a GPU, and stay in it on a CPU."""
    return 8192 if gpu else 4096 + int(1500 * (plan.model_gb or 4.0))


def scaling_calls(plan: Deployment) -> list[Call]:
    """Registration with Application Auto Scaling and the policy; nothing where no scaling is asked for."""
    if plan.scaling is None:
        return []
    resource = {
        "ServiceNamespace": "sagemaker",
        "ResourceId": f"inference-component/{plan.name}"
        if plan.component
        else f"endpoint/{plan.name}/variant/{VARIANT}",
        "ScalableDimension": "sagemaker:inference-component:DesiredCopyCount"
        if plan.component
        else "sagemaker:variant:DesiredInstanceCount",
    }
    register = {
        **resource,
        "MinCapacity": plan.scaling.min_capacity,
        "MaxCapacity": plan.scaling.max_capacity,
    }
    policy = {
        **resource,
        "PolicyName": f"{plan.name}-concurrency",
        "PolicyType": "TargetTrackingScaling",
        "TargetTrackingScalingPolicyConfiguration": {
            "TargetValue": plan.scaling.target_concurrency,
            **_scaling_metric(plan),
            "ScaleOutCooldown": SCALE_OUT_COOLDOWN_S,
            "ScaleInCooldown": SCALE_IN_COOLDOWN_S,
        },
    }
    return [
        Call("application-autoscaling", "RegisterScalableTarget", register),
        Call("application-autoscaling", "PutScalingPolicy", policy),
    ]


def _scaling_metric(plan: Deployment) -> dict[str, Any]:
    if plan.asynchronous:
        # Its queue lies before the instances, so requests at once say nothing of what waits.
        backlog = {
            "MetricName": "ApproximateBacklogSizePerInstance",
            "Namespace": "AWS/SageMaker",
            "Dimensions": [{"Name": "EndpointName", "Value": plan.name}],
            "Statistic": "Average",
        }
        return {"CustomizedMetricSpecification": backlog}
    # Both count what waits and what runs every 10 s; invocations per minute know nothing of a request's length.
    metric = (
        "SageMakerInferenceComponentConcurrentRequestsPerCopyHighResolution"
        if plan.component
        else "SageMakerVariantConcurrentRequestsPerModelHighResolution"
    )
    return {"PredefinedMetricSpecification": {"PredefinedMetricType": metric}}


def _environment(plan: Deployment) -> dict[str, str]:
    hub = {"HF_MODEL_ID": plan.model} if plan.from_hub and plan.model else {}
    return {**hub, **plan.environment}


def _timeouts(plan: Deployment) -> dict[str, int]:
    default_s = HUB_STARTUP_TIMEOUT_S if plan.from_hub else STARTUP_TIMEOUT_S
    return {
        "ModelDataDownloadTimeoutInSeconds": plan.download_timeout_s,
        "ContainerStartupHealthCheckTimeoutInSeconds": plan.startup_timeout_s or default_s,
    }
