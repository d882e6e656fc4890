"""What deploy asks of AWS, held against AWS's own model of its API."""

import dataclasses
import itertools
from typing import Any

import pytest

from sagemaker.calls import Call, ToolError, checked_name, checked_s3_uri, derived_name
from sagemaker.deploy import delete_calls, dry_deploy, status_calls
from sagemaker.instances import DEFAULT_INSTANCE_TYPE, SINGLE_GPU_TYPES, has_gpu, instance_type_for, weights_gb
from sagemaker.plan import CUDA_13_AMI, Async, Component, Deployment, Scaling, Serverless, checked
from tests.unit.sagemaker.api_model import complaints, service_model
from tests.unit.sagemaker.aws_fakes import IMAGE, ROLE

PREFIX = "s3://bucket/models/qwen3-8b"


def plan(**settings: Any) -> Deployment:
    return checked(Deployment(**{"name": "mine", "image": IMAGE, "role_arn": ROLE, **settings}))


def parameters(deployment: Deployment, operation: str) -> dict[str, Any]:
    (found,) = [call for call in dry_deploy(deployment, model_only=False) if call.operation == operation]
    return found.parameters


def variant(deployment: Deployment) -> dict[str, Any]:
    (found,) = parameters(deployment, "CreateEndpointConfig")["ProductionVariants"]
    return dict(found)


MODELS = [{}, {"model": PREFIX}, {"model": "s3://bucket/model.tar.gz"}, {"model": "Qwen/Qwen3-8B"}]
KINDS: list[dict[str, Any]] = [
    {},
    {"component": Component()},
    {"component": Component(copies=3, memory_mb=1024)},
    {"serverless": Serverless(memory_mb=2048, max_concurrency=200)},
    {"asynchronous": Async(output="s3://bucket/answers/")},
]
INSTANCES = [
    {},
    {"instance_type": "ml.c7i.4xlarge"},
    {"instance_type": "ml.g5.2xlarge", "ami_version": "al2-ami-sagemaker-inference-gpu-3-1", "volume_gb": 200},
    {"instances": 2, "startup_timeout_s": 3600, "download_timeout_s": 60},
]
SCALING = [{}, {"scaling": Scaling(min_capacity=1, max_capacity=4, target_concurrency=8.0)}]
NETWORK: list[dict[str, Any]] = [
    {},
    {"subnets": ("subnet-1",), "security_groups": ("sg-1",), "network_isolation": True},
]
REST: list[dict[str, Any]] = [
    {},
    {"metrics_path": "", "environment": {"SM_GALLEY_DTYPE": "bfloat16"}, "extra_tags": {"team": "a"}},
    {"routing": "PREFIX_AWARE", "metrics_path": "/other/metrics"},
]


def test_every_combination_is_one_that_aws_takes_or_one_that_is_refused_before() -> None:
    taken = refused = 0
    for settings in itertools.product(MODELS, KINDS, INSTANCES, SCALING, NETWORK, REST):
        merged: dict[str, Any] = {name: value for part in settings for name, value in part.items()}
        try:
            deployment = plan(**merged)
        except ToolError as error:
            refused += 1
            assert "serverless" in str(error) or "hub" in str(error), (merged, error)
            continue
        taken += 1
        for model_only in (False, True):
            for call in dry_deploy(deployment, model_only=model_only):
                assert complaints(call) == [], merged
    assert taken > 600
    assert refused > 100


def test_the_check_itself_finds_what_boto3_does_not() -> None:
    call = Call("sagemaker", "CreateEndpoint", {"EndpointName": "-bad-", "EndpointConfigName": "x" * 64})
    assert len(complaints(call)) == 3
    wrong = Call("sagemaker", "CreateEndpoint", {"Name": "x"})
    assert "Unknown parameter" in complaints(wrong)[0]


@pytest.mark.parametrize("call", [*delete_calls("mine"), *status_calls("mine"), *status_calls(None)])
def test_the_calls_of_delete_and_status(call: Call) -> None:
    assert complaints(call) == []


def test_the_defaults() -> None:
    deployment = plan(model="Qwen/Qwen3-8B")
    assert variant(deployment) == {
        "VariantName": "AllTraffic",
        "ModelName": "mine",
        "InstanceType": "ml.g6.2xlarge",
        "InitialInstanceCount": 1,
        "InitialVariantWeight": 1.0,
        "InferenceAmiVersion": CUDA_13_AMI,
        "RoutingConfig": {"RoutingStrategy": "LEAST_OUTSTANDING_REQUESTS"},
        "ModelDataDownloadTimeoutInSeconds": 1800,
        "ContainerStartupHealthCheckTimeoutInSeconds": 1800,
    }
    assert variant(plan(model=PREFIX))["ContainerStartupHealthCheckTimeoutInSeconds"] == 900
    config = parameters(deployment, "CreateEndpointConfig")
    assert config["MetricsConfig"]["EnableDetailedObservability"] is True
    container = parameters(deployment, "CreateModel")["PrimaryContainer"]
    assert container["ContainerMetricsConfig"] == {"MetricsEndpoints": [{"MetricsEndpointPath": "/metrics"}]}
    assert container["Environment"] == {"HF_MODEL_ID": "Qwen/Qwen3-8B"}
    assert [call.operation for call in dry_deploy(deployment, model_only=False)] == [
        "CreateModel",
        "CreateEndpointConfig",
        "CreateEndpoint",
    ]
    for call in dry_deploy(deployment, model_only=False):
        assert {"Key": "made-by", "Value": "python -m sagemaker"} in call.parameters["Tags"]


def test_where_the_model_lies() -> None:
    container = parameters(plan(model=PREFIX), "CreateModel")["PrimaryContainer"]
    # Without the slash, SageMaker would also take models/qwen3-8b-instruct.
    source = {"S3Uri": PREFIX + "/", "S3DataType": "S3Prefix", "CompressionType": "None"}
    assert container["ModelDataSource"] == {"S3DataSource": source}
    assert "Environment" not in container
    container = parameters(plan(model="s3://bucket/m.tar.gz"), "CreateModel")["PrimaryContainer"]
    assert container["ModelDataUrl"] == "s3://bucket/m.tar.gz"
    assert "ModelDataSource" not in container


def test_a_cpu_instance_has_no_gpu_image() -> None:
    assert "InferenceAmiVersion" not in variant(plan(instance_type="ml.c7i.4xlarge"))
    assert "InferenceAmiVersion" not in variant(plan(ami_version=""))


def test_a_component() -> None:
    deployment = plan(model=PREFIX, component=Component(copies=2), network_isolation=True)
    assert "ModelName" not in variant(deployment), "a variant with a model takes no components"
    config = parameters(deployment, "CreateEndpointConfig")
    assert config["ExecutionRoleArn"] == ROLE
    assert config["EnableNetworkIsolation"] is True
    assert variant(deployment)["ManagedInstanceScaling"]["MaxInstanceCount"] == 2
    component = parameters(deployment, "CreateInferenceComponent")
    assert component["RuntimeConfig"] == {"CopyCount": 2}
    needs = component["Specification"]["ComputeResourceRequirements"]
    assert needs == {"MinMemoryRequiredInMb": 8192, "NumberOfAcceleratorDevicesRequired": 1}
    on_cpu = plan(model="a/b-1B", instance_type="ml.c7i.4xlarge", component=Component())
    needs = parameters(on_cpu, "CreateInferenceComponent")["Specification"]["ComputeResourceRequirements"]
    assert needs == {"MinMemoryRequiredInMb": 7096, "NumberOfCpuCoresRequired": 1}


@pytest.mark.parametrize(
    ("settings", "resource", "dimension", "metric"),
    [
        (
            {},
            "endpoint/mine/variant/AllTraffic",
            "sagemaker:variant:DesiredInstanceCount",
            "SageMakerVariantConcurrentRequestsPerModelHighResolution",
        ),
        (
            {"component": Component()},
            "inference-component/mine",
            "sagemaker:inference-component:DesiredCopyCount",
            "SageMakerInferenceComponentConcurrentRequestsPerCopyHighResolution",
        ),
    ],
)
def test_scaling_follows_requests_at_once(settings: Any, resource: str, dimension: str, metric: str) -> None:
    deployment = plan(scaling=Scaling(min_capacity=1, max_capacity=3), **settings)
    for operation in ("RegisterScalableTarget", "PutScalingPolicy"):
        found = parameters(deployment, operation)
        assert (found["ResourceId"], found["ScalableDimension"]) == (resource, dimension)
    tracking = found["TargetTrackingScalingPolicyConfiguration"]
    assert tracking["PredefinedMetricSpecification"] == {"PredefinedMetricType": metric}
    assert tracking["TargetValue"] == 16.0
    # botocore's validation knows no enumeration; a misspelt metric would be refused only by AWS.
    assert metric in service_model("application-autoscaling").shape_for("MetricType").enum


def test_an_asynchronous_endpoint_scales_by_its_queue_down_to_nothing() -> None:
    asynchronous = Async(output="s3://bucket/out/")
    deployment = plan(asynchronous=asynchronous, scaling=Scaling(min_capacity=0, max_capacity=2))
    tracking = parameters(deployment, "PutScalingPolicy")["TargetTrackingScalingPolicyConfiguration"]
    metric = tracking["CustomizedMetricSpecification"]
    assert metric["MetricName"] == "ApproximateBacklogSizePerInstance"
    assert metric["Dimensions"] == [{"Name": "EndpointName", "Value": "mine"}]
    config = parameters(deployment, "CreateEndpointConfig")["AsyncInferenceConfig"]
    assert config["OutputConfig"] == {
        "S3OutputPath": "s3://bucket/out",
        "S3FailurePath": "s3://bucket/out/failures",
    }
    assert "RoutingConfig" not in variant(deployment)


def test_a_serverless_endpoint_has_nothing_of_an_instance() -> None:
    deployment = plan(model="s3://bucket/m.tar.gz", serverless=Serverless())
    assert variant(deployment) == {
        "VariantName": "AllTraffic",
        "ModelName": "mine",
        "ServerlessConfig": {"MemorySizeInMB": 6144, "MaxConcurrency": 4},
    }
    assert "MetricsConfig" not in parameters(deployment, "CreateEndpointConfig")
    assert "ContainerMetricsConfig" not in parameters(deployment, "CreateModel")["PrimaryContainer"]


SERVERLESS = Serverless()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "a_b"}, "endpoint name 'a_b' is not 1 to 63 letters"),
        ({"name": "-a"}, "endpoint name"),
        ({"name": "a" * 64}, "endpoint name"),
        ({"image": "my image"}, r"not a URI.*give ACCOUNT\.dkr"),
        ({"role_arn": "arn:aws:iam::1:role/x"}, "give the execution role's ARN"),
        ({"model": "s3://B"}, "not of the form s3://BUCKET/PREFIX"),
        ({"asynchronous": Async(output="bucket/x")}, "asynchronous output"),
        ({"serverless": SERVERLESS, "component": Component()}, "no inference component"),
        ({"serverless": SERVERLESS, "asynchronous": Async(output="s3://abc/x")}, "never asynchronous"),
        ({"serverless": SERVERLESS, "scaling": Scaling(min_capacity=1, max_capacity=2)}, "scales by itself"),
        ({"serverless": SERVERLESS, "instance_type": "ml.c5.xlarge"}, "no instance type"),
        ({"serverless": SERVERLESS, "network_isolation": True}, "no VPC"),
        ({"serverless": SERVERLESS, "model": PREFIX}, "one .tar.gz"),
        ({"serverless": Serverless(memory_mb=1500)}, "1024, 2048"),
        ({"serverless": Serverless(max_concurrency=201)}, "1 to 200"),
        ({"component": Component(), "asynchronous": Async(output="s3://abc/x")}, "never asynchronous"),
        ({"component": Component(copies=0)}, "at least one copy"),
        ({"network_isolation": True, "model": "a/b"}, "reaches no hub"),
        ({"subnets": ("subnet-1",)}, "both --subnet and --security-group"),
        ({"scaling": Scaling(min_capacity=0, max_capacity=2)}, "only an asynchronous endpoint scales to 0"),
        ({"scaling": Scaling(min_capacity=3, max_capacity=2)}, "raise it"),
        ({"scaling": Scaling(min_capacity=1, max_capacity=2, target_concurrency=0.0)}, "positive"),
        ({"instances": 0}, "at least one instance"),
        ({"model": "/home/me/model"}, "is a path: upload"),
        ({"model": "./model"}, "is a path: upload"),
        ({"model": "x/y-70B"}, "140 GB leave no room"),
        ({"environment": {"A": "x" * 1025}}, "1024 bytes each"),
        ({"environment": {f"A{i}": "" for i in range(101)}}, "100 variables"),
        ({"environment": {f"A{i}": "x" * 1000 for i in range(40)}}, "32 KiB"),
    ],
)
def test_what_aws_would_refuse_is_refused_in_one_line(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ToolError, match=words) as caught:
        plan(**settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Qwen/Qwen3-0.6B", "qwen3-0-6b"),
        ("s3://bucket/models/My_Model/", "my-model"),
        ("s3://bucket/x.tar.gz", "x"),
        ("a/" + "x-" * 50, ("x-" * 32)[:63]),
        ("___", ""),
    ],
)
def test_derived_names(text: str, name: str) -> None:
    assert derived_name(text) == name
    if name:
        assert checked_name(name, "name") == name


@pytest.mark.parametrize("uri", ["s3://", "s3://a/b", "https://bucket/x", "s3://bucket/with space", "s3://Bucket/x"])
def test_addresses_that_are_not_in_s3(uri: str) -> None:
    with pytest.raises(ToolError, match="s3://BUCKET/PREFIX"):
        checked_s3_uri(uri, "input")


@pytest.mark.parametrize(
    ("name", "size_gb", "instance_type"),
    [
        ("Qwen/Qwen3-0.6B", 1.2, "ml.g6.2xlarge"),
        ("meta-llama/Llama-3.1-8B-Instruct", 16.0, "ml.g6.2xlarge"),
        ("s3://bucket/qwen2.5-14b/", 28.0, "ml.g6e.2xlarge"),
        ("x/Model-32B-FP8", 32.0, "ml.g6e.2xlarge"),
        ("Qwen/Qwen3-30B-A3B", 60.0, "ml.p5.4xlarge"),
        ("x/Model-70B-AWQ", 38.5, "ml.p5.4xlarge"),
        ("gpt-oss", None, DEFAULT_INSTANCE_TYPE),
        ("x/base-v2.1beta", None, DEFAULT_INSTANCE_TYPE),
    ],
)
def test_the_instance_by_the_size_of_the_model(name: str, size_gb: float | None, instance_type: str) -> None:
    assert weights_gb(name) == (pytest.approx(size_gb) if size_gb is not None else None)
    assert instance_type_for(weights_gb(name)) == instance_type


def test_instance_types_are_known_and_their_kind_is_told_by_name() -> None:
    known = service_model("sagemaker").shape_for("ProductionVariantInstanceType").enum
    assert {instance_type for instance_type, _ in SINGLE_GPU_TYPES} <= set(known)
    families = {name.split(".")[1] for name in known if has_gpu(name)}
    assert families >= {"g4dn", "g5", "g6", "g6e", "p4d", "p5", "p5en", "p6-b200"}
    assert not families & {"m5", "c7g", "inf2", "trn1", "r8g", "t2", "c5"}
    assert plan(size_gb=40.0).chosen_instance_type == "ml.p5.4xlarge"
    assert dataclasses.replace(plan(), instance_type="ml.g5.xlarge").chosen_instance_type == "ml.g5.xlarge"
